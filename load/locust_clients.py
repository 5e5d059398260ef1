"""Who asks: HTTP users and users of BentoML's own clients, each as one call that returns what came of it.

gevent's patches stay out of this process: locust's HTTP client needs none, and BentoML's clients run in threads and on an event loop of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import bentoml
import gevent
from bentoml.exceptions import BentoMLException
from gevent.threadpool import ThreadPool
from locust.contrib.fasthttp import FastHttpSession
from locust.event import EventHook

from rows import ANSWERED, UNKNOWN
from workload import Request

PATH = "/v2/rerank"
KINDS = ("http", "bentoml", "bentoml-async")
THREADS = 256  # of BentoML's clients: their calls under way, at most
IDLE_SECONDS = 4.0  # then a connection is not used again: BentoML's server closes it after 5
HEADERS = ("x-cache-hits", "x-cache-misses", "x-cache-shared")


class Answer(NamedTuple):
    """What came of a request; hits, misses and shared count documents, -1 where the answer does not say."""

    status: int
    hits: int = UNKNOWN
    misses: int = UNKNOWN
    shared: int = UNKNOWN
    error: str = ""


class Client(Protocol):
    """One caller, for one request at a time."""

    def post(self, request: Request) -> Answer:
        """Ask; never raises."""

    def close(self) -> None:
        """Close its connections."""


class HttpClient:
    """Locust's fast HTTP client on one connection."""

    def __init__(self, url: str, key: str, timeout_seconds: float) -> None:
        self._headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        self._session = FastHttpSession(
            url,
            EventHook(),  # what is told to locust is told by the driver, which knows when a request was due
            None,
            network_timeout=timeout_seconds,
            connection_timeout=timeout_seconds,
            max_retries=0,
            concurrency=1,
        )
        self._used = time.monotonic()

    def post(self, request: Request) -> Answer:
        """Ask, on a new connection where the old one was idle for too long."""
        if time.monotonic() - self._used > IDLE_SECONDS:
            self.close()
        response = self._session.post(PATH, data=request.body(), headers=self._headers)
        self._used = time.monotonic()
        status = response.status_code
        if not status:
            return Answer(0, error=type(response.error).__name__)
        if status != ANSWERED:
            return Answer(status)
        hits, misses, shared = (int(response.headers.get(name, UNKNOWN)) for name in HEADERS)
        if misses != UNKNOWN and hits + misses + shared != len(request.documents):
            return Answer(0, error="documents are missing in the answer")
        return Answer(status, hits, misses, shared)

    def close(self) -> None:
        """Close its connection; the next request opens another."""
        self._session.client.clientpool.close()


class BentoClients:
    """Makes callers that use bentoml.SyncHTTPClient, each in a thread, or share one bentoml.AsyncHTTPClient."""

    def __init__(self, url: str, key: str, timeout_seconds: float) -> None:
        self._make = {"url": url, "token": key or None, "timeout": timeout_seconds}
        self._threads = ThreadPool(THREADS)

    def sync(self) -> Client:
        """Make a caller with a client of its own."""
        client: Any = self._threads.apply(bentoml.SyncHTTPClient, (), self._make)
        return _BentoCaller(client.rerank, client.close, self._threads)

    def shared(self) -> Callable[[], Client]:
        """Start the event loop and its client; what this returns makes callers that share it."""
        loop = asyncio.new_event_loop()
        gevent.get_hub().threadpool.spawn(_run, loop)

        def wait(coroutine: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

        async def make() -> Any:
            return await bentoml.AsyncHTTPClient(**self._make).__aenter__()

        client = self._threads.apply(wait, (make(),))
        return lambda: _BentoCaller(lambda **said: wait(client.rerank(**said)), lambda: None, self._threads)


class _BentoCaller:
    """One caller of a BentoML client, whose calls wait in a thread."""

    def __init__(self, rerank: Callable[..., dict[str, Any]], close: Callable[[], None], threads: ThreadPool) -> None:
        self._rerank, self._close, self._threads = rerank, close, threads

    def post(self, request: Request) -> Answer:
        """Ask by the client's `rerank`."""
        return self._threads.apply(self._ask, (request,))

    def close(self) -> None:
        """Close the client, if it is this caller's own."""
        self._threads.apply(self._close)

    def _ask(self, request: Request) -> Answer:
        try:
            answer = self._rerank(query=request.query, documents=request.documents, return_documents=False)
        except BentoMLException as error:
            return Answer(int(error.error_code))
        except Exception as error:  # noqa: BLE001  whatever the client raises is a failed request
            return Answer(0, error=type(error).__name__)
        if len(answer["results"]) != len(request.documents):
            return Answer(0, error="documents are missing in the answer")
        return Answer(ANSWERED, hits=answer["meta"]["cached_documents"])


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    with contextlib.suppress(RuntimeError):  # stopped with the process
        loop.run_forever()


def clients(kind: str, url: str, timeout_seconds: float) -> Callable[[], Client]:
    """Return what makes callers of a kind. The API key, where the server wants one, comes from API_KEY."""
    key = os.environ.get("API_KEY", "")
    if kind == "http":
        return lambda: HttpClient(url, key, timeout_seconds)
    made = BentoClients(url, key, timeout_seconds)
    return made.sync if kind == "bentoml" else made.shared()
