"""deploy/haproxy.cfg as compose.yaml starts it: one name, as many servers as it has addresses."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from names import servers_with_a_name

from servers import REPOSITORY, free_port

ONE, TWO = "127.0.0.1", "127.0.0.2"


def eventually(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """Wait until the condition holds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not within {timeout:g} s: {what}"
        time.sleep(0.05)


def asked(url: str) -> set[str]:
    """Ask a few times; who answered."""
    try:
        return {httpx.get(url, timeout=2).text for _ in range(6)}
    except httpx.TransportError:
        return set()


def test_servers_come_with_their_names_and_go_when_they_drain(tmp_path: Path) -> None:
    """A second address of the name is used within seconds; a server whose /readyz fails gets nothing more, and is back when it passes."""
    port, own = free_port(), free_port()
    with servers_with_a_name([ONE, TWO], port) as (dns, named, draining):
        text = (REPOSITORY / "deploy" / "haproxy.cfg").read_text()
        text = text.replace("parse-resolv-conf", f"nameserver test 127.0.0.1:{dns}").replace(
            "bind :8080", f"bind 127.0.0.1:{own}"
        )
        path = tmp_path / "haproxy.cfg"
        path.write_text(text)
        environment = os.environ | {"SERVERS_DNS": f"reranker:{port}"}
        haproxy = subprocess.Popen(["haproxy", "-f", path], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            url = f"http://127.0.0.1:{own}/"
            eventually(lambda: asked(url) == {ONE}, 10, "the first server")
            named.append(TWO)
            eventually(lambda: asked(url) == {ONE, TWO}, 15, "the second server")
            draining.add(ONE)
            eventually(lambda: asked(url) == {TWO}, 5, "no request to the server that drains")
            draining.clear()
            eventually(lambda: asked(url) == {ONE, TWO}, 5, "both again")
        finally:
            haproxy.terminate()
            haproxy.wait(10)
