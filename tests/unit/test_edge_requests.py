"""The edge around one request: its id in the answer and in the log, and its place among those in flight."""

from __future__ import annotations

import asyncio
import logging

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bento_service import request_id
from bento_service.edge import Edge
from bento_service.exposition import totals
from bento_service.metrics import EntryMetrics

IN_FLIGHT = ("reranker_requests_in_flight", ())


async def _hello(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("hello")(scope, receive, send)


async def _broken(_: Scope, __: Receive, ___: Send) -> None:
    raise RuntimeError("xyzzy")


async def _exchange(app: ASGIApp, entry_metrics: EntryMetrics, path: str = "/rerank", **headers: str) -> list[bytes]:
    """Send one request through the edge; the ids in its answer."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": path, "headers": given, "client": ("127.0.0.1", 1)}
    await Edge(app, entry_metrics, access_log=True)(scope, receive, send)
    return [value for name, value in sent[0]["headers"] if name == b"x-request-id"]


@pytest.mark.parametrize(("app", "headers"), [(_hello, {}), (_broken, {}), (_hello, {"content_type": "text/plain"})])
def test_each_answer_says_its_request_s_id(entry_metrics: EntryMetrics, app: ASGIApp, headers: dict[str, str]) -> None:
    """Once, the caller's own if it gave one, whether the request went well, failed or was refused."""
    assert asyncio.run(_exchange(app, entry_metrics, x_request_id="mine", **headers)) == [b"mine"]
    [made] = asyncio.run(_exchange(app, entry_metrics, **headers))
    assert len(made) == 32


def test_the_lines_about_a_request_name_it(entry_metrics: EntryMetrics, caplog: pytest.LogCaptureFixture) -> None:
    """The error and the access log's; lines that come later, about nothing, do not."""
    about = []
    caplog.handler.addFilter(lambda record: about.append((record.levelname, request_id.current())) or True)
    with caplog.at_level(logging.INFO):
        asyncio.run(_exchange(_broken, entry_metrics, x_request_id="mine"))
        logging.getLogger("bentoml.reranker").info("later")
    assert about == [("ERROR", "mine"), ("INFO", "mine"), ("INFO", "")]
    [access] = [record for record in caplog.records if getattr(record, "route", "")]
    assert (access.method, access.route, access.status, access.address) == ("POST", "/rerank", 500, "127.0.0.1")
    assert access.milliseconds >= 0


def test_requests_at_once_keep_their_ids_apart(entry_metrics: EntryMetrics) -> None:
    """Whatever the order in which they go on."""
    seen: dict[str, str] = {}
    both = asyncio.Barrier(2)

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await both.wait()
        seen[dict(scope["headers"])[b"x-request-id"].decode()] = request_id.current()
        await _hello(scope, receive, send)

    async def two() -> None:
        await asyncio.gather(
            _exchange(slow, entry_metrics, x_request_id="one"), _exchange(slow, entry_metrics, x_request_id="two")
        )

    asyncio.run(two())
    assert seen == {"one": "one", "two": "two"}


@pytest.mark.parametrize(("path", "counted"), [("/rerank", 1), ("/v1/score", 1), ("/health", 0), ("/elsewhere", 0)])
@pytest.mark.parametrize("app", [_hello, _broken])
def test_requests_are_in_flight_until_they_are_answered(
    entry_metrics: EntryMetrics, path: str, counted: int, app: ASGIApp
) -> None:
    """Those on the POST routes, however they end."""
    during = []

    async def looked_at(scope: Scope, receive: Receive, send: Send) -> None:
        during.append(totals()[IN_FLIGHT])
        await app(scope, receive, send)

    asyncio.run(_exchange(looked_at, entry_metrics, path))
    assert (during, totals()[IN_FLIGHT]) == ([counted], 0)
