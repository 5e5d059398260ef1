"""What surrounds every route: content types, callers that go away, failures nobody expected, counting.

BentoML answers nothing until its time-out when an exception leaves a route, so none may.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bento_service.body import ClientGone
from bento_service.dialects.dialect import Dialect, to_bytes
from bento_service.dialects.objects import NATIVE
from bento_service.errors import RequestError, UnsupportedMedia
from bento_service.metrics import EntryMetrics

logger = logging.getLogger("bentoml.reranker")
T = TypeVar("T")

RERANK_ROUTES = frozenset({"/rerank", "/v1/rerank", "/v2/rerank"})
SCORE_ROUTES = frozenset({"/score", "/v1/score"})
POST_ROUTES = RERANK_ROUTES | SCORE_ROUTES
GET_ROUTES = frozenset(
    {"/", "/health", "/info", "/models", "/v1/models"}
    | {"/livez", "/readyz", "/healthz", "/metrics", "/docs.json", "/schema.json"}
)
_CLIENT_CLOSED_REQUEST = 499  # nginx's number for a caller that went away; nobody reads it


async def unless_gone(request: Request, work: Coroutine[None, None, T]) -> T:
    """Await work, but cancel it and raise ClientGone when the caller closes the connection."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


async def _disconnected(request: Request) -> None:
    """Return when the caller has gone; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def json_response(content: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Render JSON as every route does."""
    return Response(to_bytes(content), status_code=status, media_type="application/json", headers=headers)


def error_response(error: RequestError, dialect: Dialect = NATIVE) -> Response:
    """Render an error of the tree, with Retry-After where the caller should come back."""
    status, body = dialect.error(error)
    retry = error.retry_after_seconds
    headers = {"Retry-After": str(max(1, retry))} if retry is not None else None
    return json_response(body, status=status, headers=headers)


class Edge:
    """ASGI middleware around all routes of the entry service."""

    def __init__(self, app: ASGIApp, metrics: EntryMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request and count it under its route."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        route = path if path in POST_ROUTES or path in GET_ROUTES else "other"
        start = time.perf_counter()
        status = _CLIENT_CLOSED_REQUEST
        begun = False

        async def counted_send(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
            await send(message)

        try:
            if scope["method"] == "POST" and path in POST_ROUTES and not _is_json(scope):
                refusal = UnsupportedMedia("only application/json is read: set the content-type header")
                await error_response(refusal)(scope, receive, counted_send)
            else:
                await self._app(scope, receive, counted_send)
        except Exception:
            logger.exception("a request to %s failed unexpectedly", route)
            if begun:
                raise
            error = RequestError("the server failed on this request; its log says why")
            await error_response(error)(scope, receive, counted_send)
        finally:
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.request_seconds.labels(route).observe(time.perf_counter() - start)


def _is_json(scope: Scope) -> bool:
    """A missing content type passes, as it does in BentoML; anything but JSON does not, pickle least of all."""
    types = [value for name, value in scope["headers"] if name == b"content-type"]
    return all(value.split(b";")[0].strip().lower() == b"application/json" for value in types)


def client_gone_response() -> Response:
    """End an exchange whose caller has left."""
    return Response(status_code=_CLIENT_CLOSED_REQUEST)
