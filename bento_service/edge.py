"""What surrounds every route: ids, keys, content types, callers that go away, failures nobody expected, counting, the access log.

BentoML answers nothing until its time-out when an exception leaves a route, so none may.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import time
from collections.abc import Coroutine
from typing import TypeVar

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bento_service import request_id
from bento_service.access import ApiKeys
from bento_service.dialects.dialect import Dialect, to_bytes
from bento_service.dialects.objects import NATIVE
from bento_service.drain import Drain, shutting_down
from bento_service.errors import RequestError, Unauthorized, UnsupportedMedia, place_of
from bento_service.intake import ClientGone, declared_bytes
from bento_service.metrics import EntryMetrics

logger = logging.getLogger("bentoml.reranker")
T = TypeVar("T")

POST_ROUTES = frozenset({"/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score"})
GET_ROUTES = frozenset(
    {"/", "/health", "/info", "/models", "/v1/models"}
    | {"/livez", "/readyz", "/healthz", "/metrics", "/docs.json", "/schema.json"}
)
PROBES = frozenset({"/livez", "/readyz", "/healthz"})
PAGES = frozenset({"/", "/health", "/metrics", "/docs.json"})
OWNER = "reranker.owner"  # in a request's scope: whose API key it came with
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_DRAINED_BYTES = 64 * 1024 * 1024  # what a refused caller may still send before it reads its answer; uvicorn throws it away
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
    headers = {"Retry-After": str(max(1, retry))} if retry is not None else {}
    return json_response(body, status=status, headers={**error.headers, **headers})


def route_of(path: str) -> str:
    """Name the route of a path, for logs and metrics: a path itself may hold anything."""
    return path if path in POST_ROUTES or path in GET_ROUTES else "other"


def unexpected(error: Exception, route: str) -> RequestError:
    """Log an error that nobody expected, and build what is told of it: its words may be the caller's, so the log has its place alone."""
    logger.error("a request to %s failed unexpectedly: %s at %s", route, type(error).__name__, place_of(error))
    return RequestError("the server failed on this request; its log says where")


class Edge:
    """ASGI middleware around all routes of the entry service.

    drain: what it takes is counted there · keys: who may come in · open_pages: whether PAGES are for everybody ·
    access_log: one line for each request.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: EntryMetrics,
        *,
        drain: Drain | None = None,
        keys: ApiKeys | None = None,
        open_pages: bool = True,
        access_log: bool = False,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._drain = drain or Drain(drain_seconds=0, shutdown_seconds=0)
        self._keys = keys or ApiKeys()
        self._open = PROBES | PAGES if open_pages else PROBES
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request and count it under its route."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        route = route_of(path)
        start = time.monotonic()
        name = request_id.begin(scope["headers"])
        status = _CLIENT_CLOSED_REQUEST
        begun = False
        endless = _is_endless(scope)
        ranks = float(route in POST_ROUTES)
        self._metrics.requests_in_flight.inc(ranks)

        async def ending_receive() -> Message:
            nonlocal endless
            message = await receive()
            endless = endless and bool(message.get("more_body"))
            return message

        async def counted_send(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                message["headers"] = [*message.get("headers", ()), (request_id.HEADER, name)]
                if endless or self._drain.begun:
                    MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal:
                self._metrics.rejections.labels(refusal.code).inc()
                await error_response(refusal)(scope, ending_receive, counted_send)
                return
            with self._drain.take():
                await self._app(scope, ending_receive, counted_send)
        except Exception as error:
            failure = unexpected(error, route)
            if begun:
                raise
            await error_response(failure)(scope, receive, counted_send)
        finally:
            seconds = time.monotonic() - start
            self._metrics.requests_in_flight.dec(ranks)
            self._metrics.answered(route, status, seconds)
            if self._access_log and path not in PROBES:
                _log_access(scope, route, status, 1000 * seconds)

    def _refusal(self, scope: Scope) -> RequestError | None:
        """Decide by the headers alone, before any of the body is read."""
        path = scope["path"]
        if self._keys.required:
            scope[OWNER] = self._keys.owner(value for name, value in scope["headers"] if name in (b"authorization", b"x-api-key"))
            if scope[OWNER] is None and path not in self._open:
                return Unauthorized("an API key is needed: send it as `Authorization: Bearer KEY` or as `X-API-Key: KEY`")
        if self._drain.closed and path in POST_ROUTES:
            return shutting_down()
        if scope["method"] == "POST" and not _is_json(scope):  # whatever the path: routers take some for others
            return UnsupportedMedia("only application/json is read: set the content-type header")
        return None


def _log_access(scope: Scope, route: str, status: int, milliseconds: float) -> None:
    """Write one line: its fields are the words of the text, and fields of their own in JSON."""
    method = scope["method"] if scope["method"] in _METHODS else "other"
    address = _address_of(scope)
    fields = {"method": method, "route": route, "status": status, "milliseconds": round(milliseconds, 1), "address": address}
    logger.info("%s %s %s %.1f ms %s", method, route, status, milliseconds, address, extra=fields)


def _address_of(scope: Scope) -> str:
    """The caller's address; behind a proxy on this machine it is what X-Forwarded-For says, which may be anything."""
    host = (scope.get("client") or ("",))[0]
    try:
        return str(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        return "-"


def _is_endless(scope: Scope) -> bool:
    """Tell whether what a refused caller may still send has no bound: then its connection is closed with the answer."""
    headers = dict(scope["headers"])
    length = declared_bytes(headers.get(b"content-length", b"0").decode("latin-1"))
    return b"transfer-encoding" in headers or length is None or length > _DRAINED_BYTES


def _is_json(scope: Scope) -> bool:
    """A missing content type passes, as it does in BentoML; anything but JSON does not, pickle least of all."""
    types = [value for name, value in scope["headers"] if name == b"content-type"]
    return all(value.split(b";")[0].strip().lower() == b"application/json" for value in types)


def client_gone_response() -> Response:
    """End an exchange whose caller has left."""
    return Response(status_code=_CLIENT_CLOSED_REQUEST)
