"""Processes killed and callers gone while others wait for the pairs they had claimed in Redis."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from cache_calls import (
    Request,
    ask,
    claimed,
    counts,
    metric,
    redis_settings,
    scored,
    scores,
    serving,
    short,
    together,
    wait_for,
)
from redis_servers import RedisServer
from servers import Server

LEASE_SECONDS = 2.0
FOLLOWERS = 30
OWNERS_BATCH = 8
NOISE_SECONDS = 3.0


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """Start the Redis of both servers."""
    with RedisServer() as running:
        yield running


@pytest.fixture(scope="module")
def both(builtin_tag: str, redis: RedisServer) -> Iterator[list[Server]]:
    """Start one with one entry worker that has two small batches under way at once, and one with four entry workers."""
    assert builtin_tag
    home, settings = Path(os.environ["BENTOML_HOME"]), redis_settings(redis.url)
    different = ({"MICRO_BATCH_MAX_SIZE": OWNERS_BATCH}, {"RERANKER_WORKERS": 4})
    with serving(*(Server(home, **settings | own) for own in different)) as running:
        yield running


@pytest.fixture
def owner(both: list[Server]) -> Server:
    """Return the one that claims pairs first; its entry worker may have died in another test."""
    return both[0].wait_ready()


@pytest.fixture
def follower(both: list[Server]) -> Server:
    """Return the other one; its model worker may have died in another test."""
    return both[1].wait_ready()


@contextlib.contextmanager
def stopped_scorer(server: Server) -> Iterator[None]:
    """Hold the model worker, so that nothing is computed."""
    [scorer] = server.workers("Scorer")
    scorer.suspend()
    try:
        yield
    finally:
        scorer.resume()


@contextlib.contextmanager
def caller(server: Server, request: Request) -> Iterator[None]:
    """Send a request and read no answer; the connection is closed at the end."""
    query, documents = request
    headers = {"content-type": "application/json"}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)) as connection:
        connection.request("POST", "/rerank", json.dumps({"query": query, "documents": documents}), headers)
        yield


def test_a_caller_that_goes_away_gives_up_its_claims_at_once(owner: Server, follower: Server, redis: RedisServer) -> None:
    """Those of the pairs that wait: another server need not wait for the lease. What is with the model is seen to its end."""
    query, documents = short(2, 40)
    scored_before = scored(follower)
    with stopped_scorer(owner):
        with caller(owner, (query, documents)):
            wait_for("the claims", lambda: claimed(redis) == 40, 5)
            wait_for("a call to the model", lambda: metric(owner, "reranker_requests_active") == 1, 5)
        wait_for("the release", lambda: claimed(redis) < 40, LEASE_SECONDS / 2)
        kept = claimed(redis)
        assert 0 < kept <= 2 * OWNERS_BATCH
        assert counts(ask(follower, (query, documents[kept:]))) == (0, 40 - kept, 0)
    wait_for("the end", lambda: claimed(redis) == 0, 10)
    assert counts(ask(follower, (query, documents[:kept]))) == (kept, 0, 0)
    assert scored(follower) - scored_before == 40 - kept


def test_a_dead_owners_pairs_are_computed_once_more(owner: Server, follower: Server, redis: RedisServer) -> None:
    """Thirty requests to another server wait for them: all are answered within the lease and one computation."""
    request = short(3, 20)
    start = time.monotonic()
    ask(follower, short(4, 20))
    alone_seconds = time.monotonic() - start
    scored_before, documents_before = scored(follower), metric(follower, "reranker_documents_total")
    [entry] = owner.workers("Reranker")
    with stopped_scorer(owner), caller(owner, request), ThreadPoolExecutor(1) as others:
        wait_for("the claims", lambda: claimed(redis) == 20, 5)
        waiting = others.submit(together, [(follower, request)] * FOLLOWERS)
        all_in = documents_before + 20 * FOLLOWERS
        wait_for("the followers", lambda: metric(follower, "reranker_documents_total") == all_in, 5)
        assert scored(follower) == scored_before
        entry.kill()
        killed = time.monotonic()
        answers = waiting.result()
        seconds = time.monotonic() - killed
    print(f"answered {seconds:.1f} s after the kill; one computation takes {alone_seconds:.1f} s")
    assert scored(follower) - scored_before == 20
    assert len({tuple(scores(answer)) for answer in answers}) == 1
    assert seconds < LEASE_SECONDS + 3 * alone_seconds + NOISE_SECONDS


def test_every_entry_worker_knows_what_another_one_computed(follower: Server) -> None:
    """A hundred requests, twenty at a time, then the same again, each on a connection of its own."""
    requests = [(follower, short(100 + number, 2)) for number in range(100)]

    def replay() -> list[httpx.Response]:
        return [answer for first in range(0, len(requests), 20) for answer in together(requests[first : first + 20])]

    first = replay()
    assert [counts(answer) for answer in first] == [(0, 2, 0)] * len(requests)
    before, logged = scored(follower), len(follower.log)
    again = replay()
    assert [counts(answer) for answer in again] == [(2, 0, 0)] * len(requests)
    assert [scores(answer) for answer in again] == [scores(answer) for answer in first]
    assert scored(follower) == before
    workers = set(re.findall(r"entry_service:Reranker:(\d+)\] POST /rerank 200", follower.log[logged:]))
    assert len(workers) > 1


def test_known_pairs_are_answered_while_the_model_is_away(follower: Server, redis: RedisServer) -> None:
    """By every entry worker; what would have to be computed gets 503 and leaves no claim."""
    requests = [(follower, short(300 + number, 3)) for number in range(20)]
    first = together(requests)
    [scorer] = follower.workers("Scorer")
    scorer.kill()
    for _ in range(2):
        again = together(requests)
        assert [counts(answer) for answer in again] == [(3, 0, 0)] * len(requests)
        assert [scores(answer) for answer in again] == [scores(answer) for answer in first]
    query, documents = requests[0][1]
    for unknown in (short(5, 3), (query, [*documents, "never seen"])):
        refused = ask(follower, unknown)
        assert refused.status_code == httpx.codes.SERVICE_UNAVAILABLE
        assert int(refused.headers["retry-after"]) >= 1
    wait_for("the release", lambda: claimed(redis) == 0, LEASE_SECONDS / 2)
    assert counts(ask(follower, requests[0][1])) == (3, 0, 0)
