"""Log lines: the request they are about, in text and in JSON, and nothing that was not said."""

from __future__ import annotations

import contextvars
import datetime as dt
import json
import logging
import sys
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from bento_service import request_id
from bento_service.log_lines import JsonLines, RequestOfLine, TextLines

ID = "0af7-x"


def _within(name: str, work: Callable[[], Any]) -> Any:
    """Do something for a request of this id."""

    def working() -> Any:
        if name:
            request_id.begin([(b"x-request-id", name.encode())])
        return work()

    return contextvars.Context().run(working)


def _line(formatter: logging.Formatter, name: str = ID, **fields: Any) -> str:
    """Format a record as BentoML's handler has it by then."""
    record = logging.LogRecord("bentoml.reranker", logging.INFO, "file", 1, "%s %d", ("said", 7), None)
    record.levelname_bracketed, record.component, record.trace_msg = "[INFO]", "[entry_service:Reranker:1]", " (trace=1)"
    record.__dict__ |= {"request_id": 12345, "service_name": "Reranker"} | fields

    def formatted() -> str:
        assert RequestOfLine().filter(record)
        return formatter.format(record)

    return str(_within(name, formatted))


@pytest.mark.parametrize(("name", "part"), [(ID, f" (request={ID}) (trace=1)"), ("", "said 7 (trace=1)")])
def test_a_text_line_names_its_request(name: str, part: str) -> None:
    """If it has one; the rest is BentoML's."""
    line = _line(TextLines(), name)
    assert line.endswith(part)
    assert " [INFO] [entry_service:Reranker:1] said 7" in line


def test_a_json_line_is_one_object() -> None:
    """With its request and its fields, and without what only the text line wants."""
    line = _line(JsonLines(), route="/rerank", status=200)
    assert "\n" not in line
    told = json.loads(line)
    assert dt.datetime.fromisoformat(told.pop("time")).tzinfo is dt.UTC
    assert told == {
        "level": "INFO",
        "logger": "bentoml.reranker",
        "component": "entry_service:Reranker:1",
        "message": "said 7",
        "request_id": ID,
        "route": "/rerank",
        "status": 200,
    }


def test_a_json_line_without_a_request_has_no_id() -> None:
    """Nor BentoML's number in its place."""
    assert "request_id" not in json.loads(_line(JsonLines(), ""))


def test_a_json_line_names_the_span_that_is_sampled() -> None:
    """As traces do, so that one leads to the other."""
    with TracerProvider(shutdown_on_exit=False).get_tracer("test").start_as_current_span("asked") as span:
        context = contextvars.copy_context()
    told = json.loads(context.run(lambda: _line_here(JsonLines())))
    assert told["trace_id"] == trace.format_trace_id(span.get_span_context().trace_id)
    assert told["span_id"] == trace.format_span_id(span.get_span_context().span_id)


def _line_here(formatter: logging.Formatter) -> str:
    return formatter.format(logging.LogRecord("x", logging.INFO, "file", 1, "said", (), None))


def test_a_failure_stays_on_its_line() -> None:
    """With where it was, and the fields of the line."""
    try:
        json.loads("xyzzy")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "file", 1, "failed", (), sys.exc_info())
    line = JsonLines().format(record)
    assert "\n" not in line
    assert "JSONDecodeError" in json.loads(line)["exc_info"]


@pytest.mark.parametrize("given", ["a", "x" * 128, "0af7651916cd43dd8448eb211c80319c", "id:7/8+9=_~!"])
def test_a_caller_s_id_is_kept(given: str) -> None:
    """If it is short and printable."""
    assert _within(given, request_id.current) == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\tb", "a\nb", "ä", "\x7f"])
def test_another_id_takes_the_place_of_one_that_is_not_fit_for_a_log(given: str) -> None:
    """One that no other request has."""

    def begun() -> tuple[bytes, str]:
        return request_id.begin([(b"x-request-id", given.encode())]), request_id.current()

    made = {contextvars.Context().run(begun) for _ in range(3)}
    assert len(made) == 3
    assert all(name.decode() == current and len(name) == 32 and current.isalnum() for name, current in made)
