"""Users of BentoML's own Python clients, beside locust's greenlets.

gevent's patches stay out of this process, so a sync client runs in a thread of a pool, and the async one on an event loop in a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import bentoml
import gevent
from bentoml.exceptions import BentoMLException
from gevent.threadpool import ThreadPool

from locust_clients import Answer, Client
from rows import ANSWERED
from workload import Request

THREADS = 256  # calls under way, at most; later ones are sent late


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
