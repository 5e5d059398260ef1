"""The edge around the app: content types, failures nobody expected, answers of our own, and the count of it all."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import REGISTRY
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bento_service.edge import Edge, client_gone_response, error_response, json_response
from bento_service.errors import InvalidRequest, QueueFull
from bento_service.exposition import totals
from bento_service.metrics import EntryMetrics

JSON = b"application/json"
PICKLE = b"application/vnd.bentoml+pickle"


@pytest.fixture
def metrics() -> Iterator[EntryMetrics]:
    """Make metrics in a registry that no other test sees."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
        patch.setattr(REGISTRY, "_collector_to_names", {})
        patch.setattr(REGISTRY, "_names_to_collectors", {})
        yield EntryMetrics()


async def _nothing(_: Scope, __: Receive, ___: Send) -> None:
    """Answer nothing, as for a caller that left."""


async def _hello(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("hello", status_code=201)(scope, receive, send)


async def _broken(_: Scope, __: Receive, ___: Send) -> None:
    raise RuntimeError("xyzzy")


async def _broken_late(_: Scope, __: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise RuntimeError("xyzzy")


def _exchange(
    app: ASGIApp, metrics: EntryMetrics, path: str = "/rerank", *types: bytes, method: str = "POST", **scope: Any
) -> Any:
    """Send one request through the edge; status and body, or None if nothing was answered."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-type", each) for each in types]
    asked = {"type": "http", "method": method, "path": path, "headers": headers, **scope}
    asyncio.run(Edge(app, metrics)(asked, receive, send))
    if not sent:
        return None
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


def _counted() -> dict[tuple[str, str], float]:
    """Requests by route and status."""
    return {
        (dict(labels)["route"], dict(labels)["status"]): value
        for (name, labels), value in totals().items()
        if name == "reranker_requests_total"
    }


@pytest.mark.parametrize("types", [(), (JSON,), (b"application/json; charset=utf-8",), (b" Application/JSON ;x=y",)])
def test_json_passes_and_so_does_no_type_at_all(metrics: EntryMetrics, types: tuple[bytes, ...]) -> None:
    """Whatever is sent is then read as JSON."""
    assert _exchange(_hello, metrics, "/rerank", *types) == (201, b"hello")
    assert _counted() == {("/rerank", "201"): 1}


@pytest.mark.parametrize(
    "types",
    [
        (PICKLE,),
        (b"text/plain",),
        (b"application/jsonl",),
        (b"",),
        (b"multipart/form-data; boundary=x",),
        (JSON, PICKLE),
        (PICKLE, JSON),
    ],
)
@pytest.mark.parametrize("path", ["/rerank", "/v2/rerank"])
def test_any_other_type_is_refused_before_the_app_sees_it(metrics: EntryMetrics, path: str, types: tuple[bytes, ...]) -> None:
    """Nothing from outside is ever unpickled, also when two types are claimed."""
    status, body = _exchange(_broken, metrics, path, *types)
    assert status == 415
    assert json.loads(body)["error"]["code"] == "unsupported_media_type"
    assert _counted() == {(path, "415"): 1}


def test_routes_without_a_body_do_not_care_for_types(metrics: EntryMetrics) -> None:
    """A browser may send anything with a GET."""
    assert _exchange(_hello, metrics, "/health", b"text/plain", method="GET") == (201, b"hello")
    assert _exchange(_hello, metrics, "/rerank", b"text/plain", method="GET") == (201, b"hello")


def test_an_unexpected_failure_is_answered_at_once_without_its_words(
    metrics: EntryMetrics, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has its kind and place; the words may be a caller's."""
    with caplog.at_level(logging.ERROR):
        status, body = _exchange(_broken, metrics, "/rerank", JSON)
    assert status == 500
    assert json.loads(body)["error"]["code"] == "internal_error"
    assert b"xyzzy" not in body
    assert "xyzzy" not in caplog.text
    assert re.search(
        r"a request to /rerank failed unexpectedly: RuntimeError at test_edge_app\.py:\d+ < edge\.py:\d+", caplog.text
    )
    assert _counted() == {("/rerank", "500"): 1}


def test_a_failure_after_the_first_byte_breaks_the_answer_off(metrics: EntryMetrics) -> None:
    """A second answer behind half a first one would be worse; it counts under the status sent."""
    with pytest.raises(RuntimeError, match="xyzzy"):
        _exchange(_broken_late, metrics, "/rerank", JSON)
    assert _counted() == {("/rerank", "200"): 1}


def test_unknown_paths_share_one_label(metrics: EntryMetrics) -> None:
    """A scanner must not grow our memory."""
    for number in range(50):
        _exchange(_hello, metrics, f"/wp-admin/{number}", method="GET")
    assert _counted() == {("other", "201"): 50}


def test_a_request_that_nobody_answers_counts_as_closed_by_its_caller(metrics: EntryMetrics) -> None:
    """As nginx counts it."""
    assert _exchange(_nothing, metrics) is None
    assert _counted() == {("/rerank", "499"): 1}
    assert client_gone_response().status_code == 499


def test_seconds_are_measured_by_route(metrics: EntryMetrics) -> None:
    """Once per request."""
    _exchange(_hello, metrics)
    _exchange(_broken, metrics, "/v2/rerank")
    samples = totals()
    assert samples["reranker_request_seconds_count", (("route", "/rerank"),)] == 1
    assert samples["reranker_request_seconds_count", (("route", "/v2/rerank"),)] == 1


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
def test_what_is_no_http_passes_untouched_and_uncounted(metrics: EntryMetrics, kind: str) -> None:
    """Start and stop of the app go through the edge too."""
    with pytest.raises(RuntimeError, match="xyzzy"):
        _exchange(_broken, metrics, type=kind)
    assert _counted() == {}


def test_json_is_answered_as_json() -> None:
    """With the status and headers asked for."""
    response = json_response({"a": "中"}, status=202, headers={"x-a": "b"})
    assert (response.status_code, bytes(response.body)) == (202, '{"a":"中"}'.encode())
    assert (response.headers["content-type"], response.headers["x-a"]) == ("application/json", "b")


@pytest.mark.parametrize(("seconds", "header"), [(None, None), (0, "1"), (1, "1"), (7, "7"), (-3, "1")])
def test_retry_after_is_a_whole_number_of_at_least_one(seconds: int | None, header: str | None) -> None:
    """0 would make clients storm; no number, no header."""
    response: Response = error_response(QueueFull("full", retry_after_seconds=seconds))
    assert (response.status_code, response.headers.get("retry-after")) == (429, header)


def test_an_error_is_answered_with_its_own_status_and_body() -> None:
    """Code and field at fault included."""
    response = error_response(InvalidRequest("no", code="documents_empty", param="documents"))
    assert response.status_code == 400
    assert json.loads(bytes(response.body))["error"] == {
        "message": "no",
        "type": "invalid_request_error",
        "param": "documents",
        "code": "documents_empty",
    }
