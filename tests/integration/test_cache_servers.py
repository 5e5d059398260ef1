"""Servers that share a Redis: each pair is computed once among them, and every score is what it is without a cache."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import bentoml
import pytest

from cache_calls import ask, counts, redis_settings, scored, scores, serving, short, stored, together, wait_for
from redis_servers import RedisServer
from servers import REPOSITORY, Server

BURST = 64
TWIN = "all-minilm-l6-v2-twin"
CLEAR_SECONDS = 3.0


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """Start the Redis of all servers here."""
    with RedisServer() as running:
        yield running


@pytest.fixture(scope="module")
def servers(builtin_tag: str, redis: RedisServer) -> Iterator[list[Server]]:
    """Serve the built-in model three times, the third under another tag."""
    from model_store_scripts.save_model import save_model

    assert builtin_tag
    twin = save_model("builtin", name=TWIN)
    home, settings = Path(os.environ["BENTOML_HOME"]), redis_settings(redis.url)
    try:
        with serving(*(Server(home, **settings | own) for own in ({}, {}, {"RERANKER_MODEL": TWIN}))) as running:
            yield running
    finally:
        bentoml.models.delete(twin)


def test_identical_requests_to_three_servers_compute_each_pair_once(servers: list[Server]) -> None:
    """64 at once to each: 192 answers, all the same bit for bit."""
    request = short(1, 20)
    before = scored(*servers)
    answers = together([(server, request) for server in servers for _ in range(BURST)])
    assert scored(*servers) - before == 20
    assert len({tuple(scores(answer)) for answer in answers}) == 1
    assert len(answers) == 3 * BURST
    assert sum(counts(answer)[1] for answer in answers) == 20


def test_overlapping_requests_to_three_servers_compute_each_pair_once(servers: list[Server]) -> None:
    """Two queries, each request some of 40 documents: one score for each pair, wherever it was asked for."""
    draw = random.Random(2)  # noqa: S311  no secret
    asked, places = [], []
    for server in servers:
        for _ in range(BURST):
            query, documents = short(draw.choice((21, 22)), 40)
            drawn = draw.sample(range(40), draw.randint(1, 20))
            asked.append((server, (query, [documents[place] for place in drawn])))
            places.append(drawn)
    before = scored(*servers)
    answers = together(asked)
    seen: dict[tuple[str, int], set[float]] = {}
    for (_, (query, _)), drawn, answer in zip(asked, places, answers, strict=True):
        for place, score in zip(drawn, scores(answer), strict=True):
            seen.setdefault((query, place), set()).add(score)
    assert scored(*servers) - before == len(seen)
    assert all(len(values) == 1 for values in seen.values())
    assert len(seen) > 70


def test_another_server_answers_from_redis(servers: list[Server]) -> None:
    """The same scores bit for bit and the same usage, also under the model's other tag, with nothing computed."""
    query, documents = short(3, 20)
    request = query, [*documents, documents[0], " ".join(documents * 3)]  # a repeated one and a truncated one
    first = ask(servers[0], request)
    assert counts(first) == (0, 22, 0)
    before = scored(*servers)
    for server in servers[1:]:
        again = ask(server, request)
        assert counts(again) == (22, 0, 0)
        assert scores(again) == scores(first)
        for same in ("usage", "results"):
            assert again.json()[same] == first.json()[same]
        for same in ("tokens", "truncated_documents", "billed_units"):
            assert again.json()["meta"][same] == first.json()["meta"][same]
    assert first.json()["meta"]["truncated_documents"] == [21]
    assert again.json()["model"].startswith(TWIN)
    assert scored(*servers) == before


def test_another_server_knows_the_best_window_too(servers: list[Server]) -> None:
    """Scores and spans of windows, apart from those of the documents cut off."""
    query, documents = short(8, 4)
    request = query, [*documents, " ".join(documents * 30)]
    first, again = (ask(server, request, long_documents="chunk") for server in servers[:2])
    assert (counts(first), counts(again)) == ((0, 5, 0), (5, 0, 0))
    assert again.json()["results"] == first.json()["results"]
    assert all("document_span" in result for result in again.json()["results"])
    assert counts(ask(servers[1], request)) == (0, 5, 0)
    assert counts(ask(servers[1], request, long_documents="chunk", max_chunks_per_doc=1)) == (0, 5, 0)


def test_no_store_computes_and_leaves_nothing(servers: list[Server], redis: RedisServer) -> None:
    """Neither in Redis nor in the process; its scores are those of the caches within 1e-5."""
    request = short(4, 20)
    before = stored(redis)
    uncached = ask(servers[0], request, "no-store")
    assert counts(uncached) == (0, 20, 0)
    assert stored(redis) == before
    cached = ask(servers[0], request)
    assert counts(cached) == (0, 20, 0)
    assert stored(redis) == before + 20
    assert scores(cached) == pytest.approx(scores(uncached), abs=1e-5)
    assert counts(ask(servers[0], request, "no-store")) == (0, 20, 0)
    assert scores(ask(servers[1], request)) == scores(cached)


def test_no_cache_computes_anew(servers: list[Server], redis: RedisServer) -> None:
    """What it finds is what later requests are answered with, on every server."""
    request = short(5, 20)
    ask(servers[0], request)
    before, known = scored(*servers), stored(redis)
    anew = ask(servers[1], request, "no-cache")
    assert counts(anew) == (0, 20, 0)
    assert scored(*servers) - before == 20
    assert stored(redis) == known
    for server in servers[1:]:
        later = ask(server, request)
        assert counts(later) == (20, 0, 0)
        assert scores(later) == scores(anew)


def test_only_what_decides_on_a_score_makes_another_pair(servers: list[Server]) -> None:
    """Raw scores and answer options do not, a document's limit does."""
    request = short(6, 20)
    first = ask(servers[0], request)
    raw = ask(servers[1], request, raw_scores=True, top_n=5, return_documents=True)
    assert counts(raw) == (20, 0, 0)
    best = {result["index"]: result["relevance_score"] for result in raw.json()["results"]}
    assert [(1 + best[index]) / 2 for index in best] == pytest.approx([scores(first)[index] for index in best], abs=1e-6)
    limited = ask(servers[1], request, max_tokens_per_doc=5)
    assert counts(limited) == (0, 20, 0)
    assert len(limited.json()["meta"]["truncated_documents"]) == 20


def test_health_reports_the_redis(servers: list[Server], redis: RedisServer) -> None:
    """In use, and how many keys it holds."""
    ask(servers[0], short(7, 3))
    size = redis.client().dbsize()
    for server in servers:
        report = server.get("/health").json()["distributed_cache"]
        assert (report["enabled"], report["connected"], report["state"]) == (True, True, "closed")
        assert report["cached_entries"] == size > 0


def test_a_cleared_model_is_computed_anew_on_every_server(servers: list[Server], redis: RedisServer) -> None:
    """Though each server had it in memory."""
    requests = {server: short(80 + number, 10) for number, server in enumerate(servers)}
    for server, request in requests.items():
        ask(server, request)
    fingerprint = servers[0].get("/health").json()["model"]["fingerprint"]
    command = [sys.executable, "-m", "bento_service.cache.clear", "--fingerprint", fingerprint]
    environment = os.environ | {"REDIS_ENABLED": "true", "REDIS_URL": redis.url}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, capture_output=True, text=True)
    cleared = time.monotonic()
    assert int(done.stdout.split()[0]) > 0

    def is_forgotten(server: Server) -> bool:
        return counts(ask(server, requests[server])) == (0, 10, 0)

    for server in servers:
        before = scored(server)
        wait_for("a miss", partial(is_forgotten, server), cleared + CLEAR_SECONDS - time.monotonic())
        assert scored(server) - before == 10
