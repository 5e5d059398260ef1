"""Log lines as text or as JSON, each with the id of the request that it is about.

What a line says is decided where it is logged; nothing here adds a document, a query or a key to it.
"""

from __future__ import annotations

import logging
from typing import Any

from opentelemetry import trace
from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from bento_service import request_id

# BentoML's, with the request's id.
_TEXT = "%(asctime)s %(levelname_bracketed)s %(component)s %(message)s%(request)s%(trace_msg)s"
_TEXT_DATE = "%Y-%m-%dT%H:%M:%S%z"
# What BentoML writes into its records for its own text lines.
_BENTOML_ATTRIBUTES = ("levelname_bracketed", "trace_msg", "service_name", "request")


class RequestOfLine(logging.Filter):
    """Writes into each record which request it is about, and which span, where that is sampled; lets everything pass."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Write it; BentoML has put a number of its own there."""
        current = request_id.current()
        record.request_id = current or None
        record.request = f" (request={current})" if current else ""
        return True


class TextLines(logging.Formatter):
    """BentoML's lines, with the request's id."""

    def __init__(self) -> None:
        super().__init__(_TEXT, _TEXT_DATE)


class JsonLines(JsonFormatter):
    """One JSON object a line: time (UTC), level, logger, component, message, request_id and trace where there are any, and the fields of the line."""

    def __init__(self) -> None:
        super().__init__(
            ["levelname", "name", "component", "message"],
            rename_fields={"levelname": "level", "name": "logger"},
            reserved_attrs=[*RESERVED_ATTRS, *_BENTOML_ATTRIBUTES],
            timestamp="time",
        )

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Leave out what is not known, and name the span where it is sampled."""
        log_data["component"] = str(log_data.get("component") or "").strip("[]")
        span = trace.get_current_span().get_span_context()
        if span.trace_flags.sampled:
            log_data |= {"trace_id": format(span.trace_id, "032x"), "span_id": format(span.span_id, "016x")}
        return {name: value for name, value in {"time": None, **log_data}.items() if value not in (None, "")}
