"""An OTLP/HTTP receiver of traces, as a collector is one, for tests."""

from __future__ import annotations

import gzip
import http.server
import threading
from dataclasses import dataclass
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Span:
    """What a test asks of a span. Times in seconds since 1970; ids in hex, parent empty at a trace's root."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    begun: float
    ended: float
    attributes: dict[str, str]


class TraceReceiver:
    """Listens on a free port and keeps what it is sent."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._news = threading.Condition()
        receiver = self

        class _Door(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Door)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}/v1/traces"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, sent: Any) -> None:
        """Keep the spans of one export."""
        with self._news:
            for resource in sent.resource_spans:
                service = {each.key: each.value.string_value for each in resource.resource.attributes}["service.name"]
                self._spans += [_span(service, span) for scope in resource.scope_spans for span in scope.spans]
            self._news.notify_all()

    def trace_of(self, trace_id: str, *, spans: set[tuple[str, str]], timeout: float = 20.0) -> list[Span]:
        """Wait until these (service, name) of a trace have come; everything that has come of it by then."""

        def come() -> list[Span]:
            return [span for span in self._spans if span.trace == trace_id]

        with self._news:
            self._news.wait_for(lambda: spans <= {(span.service, span.name) for span in come()}, timeout)
            return come()


def _span(service: str, span: Any) -> Span:
    attributes = {each.key: each.value.string_value or str(each.value.int_value) for each in span.attributes}
    return Span(
        service,
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano / 1e9,
        span.end_time_unix_nano / 1e9,
        attributes,
    )
