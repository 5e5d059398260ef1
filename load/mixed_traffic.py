"""Requests of every kind that the metrics tell apart: popular and new ones, repeated and over-long documents, mistakes.

Popularity is Zipf's: a few queries come again and again. Standard library only.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from loops import TIMEOUT_SECONDS
from texts import Texts

_QUERIES = 200
_ASKED_TWICE = 0.25  # of the new requests: at once by the next client, too
_LONG_WORDS = 600  # over the built-in model's window of 256 tokens
_ROUTES = ("/rerank", "/v1/rerank", "/v2/rerank")


class MixedTraffic:
    """A seeded stream of requests; safe between threads.

    documents: of a request · new: share of the requests that nobody has asked yet, but for one in four of them that two clients ask at
    once · mistakes: share that is refused with 400.
    """

    def __init__(self, seed: int, *, documents: int, new: float = 0.2, mistakes: float = 0.02) -> None:
        self._random = random.Random(seed)
        self._texts = Texts(seed)
        self._documents = documents
        self._new, self._mistakes = new, mistakes
        self._popular = [self._body() for _ in range(_QUERIES)]
        self._weights = [1 / rank for rank in range(1, _QUERIES + 1)]
        self._again: bytes | None = None
        self._lock = threading.Lock()

    def take(self) -> tuple[str, bytes]:
        """Return a path and a body."""
        with self._lock:
            path, kind = self._random.choice(_ROUTES), self._random.random()
            if kind < self._mistakes:
                return path, b'{"query": "no documents", "documents": []}'
            if self._again:
                body, self._again = self._again, None
                return path, body
            if kind < self._mistakes + self._new:
                body = self._body()
                self._again = body if self._random.random() < _ASKED_TWICE else None
                return path, body
            return path, self._random.choices(self._popular, self._weights)[0]

    def _body(self) -> bytes:
        """Make a request: one document in ten comes twice, and one request in four has one that is cut."""
        query, documents = self._texts.request(self._documents)
        if self._random.random() < 0.25:  # noqa: PLR2004  as said
            words = documents[0].split()
            documents[0] = " ".join(words * -(-_LONG_WORDS // len(words)))
        documents += documents[: max(1, self._documents // 10)]
        return json.dumps({"query": query, "documents": documents}).encode()


@contextmanager
def clients(port: int, traffic: MixedTraffic, count: int) -> Iterator[Counter[int]]:
    """Let `count` clients send one request after the other for as long as the block lasts; how many answers had which status, 0 for none."""
    statuses: Counter[int] = Counter()
    lock, over = threading.Lock(), threading.Event()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
        while not over.is_set():
            path, body = traffic.take()
            status = _send(connection, path, body)
            with lock:
                statuses[status] += 1
            if status == http.client.TOO_MANY_REQUESTS:
                over.wait(0.05)  # a caller that never waits would only measure how fast it is turned away
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield statuses
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _send(connection: http.client.HTTPConnection, path: str, body: bytes) -> int:
    """Send a request and return the status of its answer."""
    try:
        connection.request("POST", path, body, {"content-type": "application/json"})
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException):
        connection.close()
        return 0
    return response.status
