"""A DNS server that knows one name, and web servers at the addresses that it stands for."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_HEADER = 12
_ANSWER = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x01\x00\x04"  # the name asked for, A, IN, 1 second, 4 bytes


class _Query(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        """Answer a question for IPv4 addresses, and any other with none."""
        question, reply = self.request
        end = question.index(b"\0", _HEADER) + 5
        addresses: list[str] = self.server.addresses if question[end - 4 : end - 2] == b"\0\1" else []  # type: ignore[attr-defined]
        answers = b"".join(_ANSWER + bytes(int(part) for part in address.split(".")) for address in addresses)
        counts = b"\0\1" + len(addresses).to_bytes(2, "big") + b"\0\0\0\0"
        reply.sendto(question[:2] + b"\x81\x80" + counts + question[_HEADER:end] + answers, self.client_address)


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Say which address this is; /readyz fails for those that drain."""
        address = self.server.server_address[0]
        draining: set[Any] = self.server.draining  # type: ignore[attr-defined]
        self.send_response(503 if self.path == "/readyz" and address in draining else 200)
        self.send_header("content-length", str(len(str(address))))
        self.end_headers()
        self.wfile.write(str(address).encode())

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def servers_with_a_name(addresses: Sequence[str], port: int) -> Iterator[tuple[int, list[str], set[str]]]:
    """Serve pages at each of the addresses, and DNS; gives the DNS port, the addresses that the name has, and those that drain."""
    named, draining = list(addresses[:1]), set[str]()
    with ExitStack() as stack:
        dns = stack.enter_context(socketserver.UDPServer(("127.0.0.1", 0), _Query))
        dns.addresses = named  # type: ignore[attr-defined]
        running: list[Any] = [dns]
        for address in addresses:
            page = stack.enter_context(ThreadingHTTPServer((address, port), _Page))
            page.draining = draining  # type: ignore[attr-defined]
            running.append(page)
        for server in running:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
            stack.callback(server.shutdown)
        yield int(dns.server_address[1]), named, draining
