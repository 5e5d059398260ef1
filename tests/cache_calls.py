"""What the tests of the caches ask of real servers, and how they count what was computed."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, Self

import httpx
import pytest

from bento_service.cache.layout import PREFIX
from redis_servers import RedisServer
from servers import Server
from texts import Texts

KEYS = PREFIX + "*"
_WORDS = 4
_CLIENTS = 3
_PAUSE_SECONDS = 0.6
_SEEDS = itertools.count(10_000)
Request = tuple[str, list[str]]


@cache
def short(seed: int, documents: int) -> Request:
    """Make a query and documents of a few words each, quick to score; the same seed makes the same."""
    query, long = Texts(seed).request(documents)
    return query, [f"{number} {' '.join(text.split()[:_WORDS])}" for number, text in enumerate(long)]


def redis_settings(url: str) -> dict[str, object]:
    """Settings of a small server that uses a Redis."""
    return {"REDIS_ENABLED": "true", "REDIS_URL": url, "RERANKER_TORCH_THREADS": 1}


@contextmanager
def serving(*servers: Server) -> Iterator[list[Server]]:
    """Wait until all are ready; stop them all at once."""
    try:
        yield [server.wait_ready() for server in servers]
    finally:
        with ThreadPoolExecutor(len(servers)) as stopping:
            list(stopping.map(Server.stop, servers))


def ask(server: Server, request: Request, cache_control: str = "", timeout: float = 30.0, **fields: Any) -> httpx.Response:
    """Send one request on a connection of its own."""
    return together([(server, request)], cache_control=cache_control, timeout=timeout, **fields)[0]


def together(
    requests: Sequence[tuple[Server, Request]], cache_control: str = "", timeout: float = 60.0, **fields: Any
) -> list[httpx.Response]:
    """Send all requests at once, each on a connection of its own; the answers in order."""
    headers = {"cache-control": cache_control} if cache_control else {}

    async def send() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(limits=limits, timeout=timeout, headers=headers) as client:
            bodies = [{"query": query, "documents": texts, "return_documents": False} | fields for _, (query, texts) in requests]
            calls = [client.post(server.url + "/rerank", json=body) for (server, _), body in zip(requests, bodies, strict=True)]
            return await asyncio.gather(*calls)

    return asyncio.run(send())


def counts(answer: httpx.Response) -> tuple[int, int, int]:
    """Read how many documents were hits, misses and shared."""
    assert answer.status_code == httpx.codes.OK, answer.text
    hits, misses, shared = (int(answer.headers[f"x-cache-{name}"]) for name in ("hits", "misses", "shared"))
    assert answer.json()["meta"]["cached_documents"] == hits
    return hits, misses, shared


def scores(answer: httpx.Response) -> list[float]:
    """Read the scores in the order of the documents."""
    assert answer.status_code == httpx.codes.OK, answer.text
    return [result["relevance_score"] for result in sorted(answer.json()["results"], key=lambda result: result["index"])]


def metric(server: Server, sample: str) -> float:
    """Read one sample of /metrics by its name and labels; 0 where it is not there yet."""
    lines = server.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.rpartition(" ")[0] == sample)


def scored(*servers: Server) -> int:
    """Count the pairs that the model worker of each server has scored since its start."""
    return int(sum(metric(server, 'reranker_pairs_total{outcome="scored"}') for server in servers))


def stored(redis: RedisServer) -> int:
    """Count the pairs that Redis knows."""
    client = redis.client()
    return sum(
        client.hlen(key) for key in client.scan_iter(KEYS) if key.rpartition(b":")[2].isdigit() and client.type(key) == b"hash"
    )


def claimed(redis: RedisServer) -> int:
    """Count the pairs that Redis takes for being computed."""
    client = redis.client()
    return sum(client.hlen(key) for key in client.scan_iter(KEYS + ":claims"))


def wait_for(what: str, holds: Callable[[], bool], timeout: float) -> float:
    """Wait until something holds; the seconds that took."""
    start = time.monotonic()
    while not holds():
        assert time.monotonic() - start < timeout, f"{what} did not come within {timeout:g} s"
        time.sleep(0.02)
    return time.monotonic() - start


class Load:
    """A few clients that ask everything twice, the second time at once. documents: in a request · timeout: of one, in seconds."""

    def __init__(self, server: Server, documents: int, *, timeout: float) -> None:
        self._server = server
        self._documents = documents
        self._timeout = timeout
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._client) for _ in range(_CLIENTS)]
        self._last_hit = 0.0
        self.answers: list[tuple[int, httpx.Response]] = []
        self.errors: list[Exception] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _client(self) -> None:
        with httpx.Client(base_url=self._server.url, timeout=self._timeout) as client:
            while not self._end.wait(_PAUSE_SECONDS):
                seed = next(_SEEDS)
                query, documents = short(seed, self._documents)
                for _ in range(2):
                    sent = time.monotonic()
                    try:
                        answer = client.post("/rerank", json={"query": query, "documents": documents})
                    except httpx.HTTPError as error:
                        self.errors.append(error)
                    else:
                        self.answers.append((seed, answer))
                        if answer.headers.get("x-cache-hits") == str(self._documents):
                            self._last_hit = max(sent, self._last_hit)

    def hits_since(self, moment: float) -> bool:
        """Tell whether a repeated request that was sent after a moment was answered from Redis."""
        return self._last_hit > moment

    def check(self) -> None:
        """Hold every score against the one without a cache."""
        assert self.errors == []
        assert {answer.status_code for _, answer in self.answers} == {httpx.codes.OK}
        seeds = sorted({seed for seed, _ in self.answers})
        uncached = together([(self._server, short(seed, self._documents)) for seed in seeds], "no-store")
        right = {seed: scores(answer) for seed, answer in zip(seeds, uncached, strict=True)}
        for seed, answer in self.answers:
            assert scores(answer) == pytest.approx(right[seed], abs=1e-5)
