"""Who asks: HTTP users, and (bento_clients.py) users of BentoML's own clients, each as one call that returns what came of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from locust.contrib.fasthttp import FastHttpSession
from locust.event import EventHook

from rows import ANSWERED, UNKNOWN
from workload import Request

PATH = "/v2/rerank"
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


def clients(kind: str, url: str, timeout_seconds: float) -> Callable[[], Client]:
    """Return what makes callers of a kind. The API key, where the server wants one, comes from KEY."""
    key = os.environ.get("KEY", "")
    if kind == "http":
        return lambda: HttpClient(url, key, timeout_seconds)
    from bento_clients import BentoClients  # which takes a second to import

    made = BentoClients(url, key, timeout_seconds)
    return made.sync if kind == "bentoml" else made.shared()
