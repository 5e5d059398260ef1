"""Deduplication among servers: over one real Redis each pair has one owner, and an owner that ends is replaced by one other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

import pytest
from dedup_parts import WINDOW, Server, claims_in, clean, make_tokenizer, raws, served, until
from parts import played
from pipeline_parts import FINGERPRINT

from bento_service import dedup, waiting
from bento_service.cache import shared
from bento_service.cache.keys import pair_keys
from bento_service.errors import DeadlinePassed, QueueFull, ScorerFailed
from bento_service.metrics import EntryMetrics
from bento_service.schemas import CacheUse, RerankQuery
from bento_service.tokenizer import PairTokenizer
from redis_servers import RedisServer


@pytest.fixture(scope="module")
def tokenizer(builtin_folder: Path) -> Iterator[PairTokenizer]:
    """Load the built-in model's tokenizer once."""
    with make_tokenizer(builtin_folder) as made:
        yield made


@pytest.fixture
def dedup_redis() -> Iterator[RedisServer]:
    """Start a Redis."""
    with RedisServer() as running:
        yield running


@pytest.fixture
def servers(tokenizer: PairTokenizer, entry_metrics: EntryMetrics, dedup_redis: RedisServer) -> list[Server]:
    """Make three servers over one Redis, each with a Scorer that takes one pair at a time."""
    return [Server(tokenizer, entry_metrics, redis=dedup_redis, batch_pairs=1) for _ in range(3)]


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> float:
    """Let a lease pass in a moment."""
    seconds = 0.4
    for room in (dedup, shared, waiting):
        monkeypatch.setattr(room, "LEASE_SECONDS", seconds)
    return seconds


@served
async def test_a_pair_is_computed_once_among_all(servers: list[Server], dedup_redis: RedisServer) -> None:
    """Who waited is counted as sharing it among servers, who comes later finds it in Redis, and then in its own memory."""
    first, second, third = servers
    metrics = first.metrics
    owner = first.ask("a")
    call = await first.link.calls.get()
    waiting = [second.ask("a"), second.ask("a")]
    await second.waits_for_others()
    call.answer()
    assert [astuple((await asked).cache) for asked in (owner, *waiting)] == [(0, 1, 0), (0, 0, 1), (0, 0, 1)]
    assert raws(await owner) == raws(await waiting[0]) == raws(await waiting[1]) == first.truth("a")
    for tier in ("redis", "process"):
        assert await third.known("a") == (first.truth("a"), (1, 0, 0))
        assert metrics.cache_hits.labels(tier)._value.get() == 1
    assert metrics.shared_pairs.labels("servers")._value.get() == 2
    assert (first.link.asked, second.link.asked, third.link.asked) == (["a"], [], [])
    assert claims_in(dedup_redis) == []


@served
async def test_servers_share_what_overlaps(servers: list[Server], dedup_redis: RedisServer) -> None:
    """Each computes its own before it waits, also where two wait for each other."""
    first, second, _ = servers
    asked = [first.ask("a"), second.ask("b")]
    calls = [await server.link.calls.get() for server in (first, second)]
    asked += [first.ask("c", "a", "b"), second.ask("d", "b", "a")]
    await until(lambda: first.admission._turns._queue and second.admission._turns._queue)
    for call in calls:
        call.answer()
    assert [await first.answer(), await second.answer()] == [["c"], ["d"]]
    results = await asyncio.gather(*asked)
    assert [raws(result) for result in results] == [first.truth(*texts) for texts in ("a", "b", "cab", "dba")]
    assert [result.cache.misses for result in results] == [1, 1, 1, 1]
    assert claims_in(dedup_redis) == []


@served
async def test_many_requests_at_many_servers_compute_each_pair_once(servers: list[Server], dedup_redis: RedisServer) -> None:
    """Whatever of it comes from where."""
    for server in servers:
        server.link.held = False
    texts = [f"number {number}" for number in range(40)]
    asked = [server.ask(*texts[start : start + 20]) for start in range(0, 21, 5) for server in servers]
    results = await asyncio.gather(*asked)
    assert sorted(text for server in servers for text in server.link.asked) == sorted(texts)
    assert sum(result.cache.misses for result in results) == 40
    truth = dict(zip(texts, servers[0].truth(*texts), strict=True))
    for start, result in zip([start for start in range(0, 21, 5) for _ in servers], results, strict=True):
        assert raws(result) == [truth[text] for text in texts[start : start + 20]]
    assert claims_in(dedup_redis) == []


@served
async def test_a_dead_owner_is_replaced_by_one_other_after_its_lease(servers: list[Server], short_lease: float) -> None:
    """A process that dies neither renews nor releases."""
    keys = pair_keys(RerankQuery("q", []), ["a", "b"], fingerprint=FINGERPRINT, max_length=WINDOW)
    begin = time.monotonic()
    assert (await servers[0].shared.claim(keys, [0, 1], bytes(12), most_age_seconds=9)).owned == [0, 1]
    asked = [server.ask("a") for server in servers]
    for server in servers:
        await server.waits_for_others()
    await until(lambda: any(server.link.asked for server in servers))
    assert time.monotonic() - begin >= 0.9 * short_lease
    [owner] = [server for server in servers if server.link.asked]
    await owner.answer()
    assert [raws(result) for result in await asyncio.gather(*asked)] == [owner.truth("a")] * 3
    assert sum(len(server.link.asked) for server in servers) == 1


@served
async def test_a_slow_owner_keeps_its_claims_for_many_leases(
    servers: list[Server], dedup_redis: RedisServer, short_lease: float
) -> None:
    """The others wait as long as they would compute, which here is long."""
    for server in servers:
        server.link.pairs_per_second = 0.1
    asked = [servers[0].ask("a", "b")]
    call = await servers[0].link.calls.get()
    asked += [servers[1].ask("a", "b"), servers[2].ask("b")]
    await asyncio.sleep(3 * short_lease)
    call.answer()
    assert await servers[0].answer() == ["b"]
    assert [raws(result) for result in await asyncio.gather(*asked)] == [servers[0].truth(*texts) for texts in ("ab", "ab", "b")]
    assert [server.link.asked for server in servers] == [["a", "b"], [], []]
    assert claims_in(dedup_redis) == []


@served
async def test_a_claim_that_outlasts_the_patience_of_others_is_taken_over_once(
    servers: list[Server], dedup_redis: RedisServer, short_lease: float
) -> None:
    """Though its owner lives; what that one computed in the end is right, too."""
    slow, *others = servers
    asked = [slow.ask("a")]
    call = await slow.link.calls.get()
    asked += [server.ask("a") for server in others for _ in range(2)]
    for server in others:
        await server.waits_for_others()
    await until(lambda: any(server.link.asked for server in others))
    [owner] = [server for server in others if server.link.asked]
    await asyncio.sleep(short_lease / 2)  # in which the slow one renews what is still its own: nothing
    await owner.answer()
    assert [raws(result) for result in await asyncio.gather(*asked[1:])] == [slow.truth("a")] * 4
    assert not asked[0].done()
    assert claims_in(dedup_redis) == []
    call.answer()
    assert raws(await asked[0]) == slow.truth("a")
    assert sum(len(server.link.asked) for server in servers) == 2
    assert claims_in(dedup_redis) == []


@pytest.mark.usefixtures("short_lease")
@served
async def test_what_another_server_has_not_sent_moves_to_one_who_has_lost_patience(
    servers: list[Server], dedup_redis: RedisServer
) -> None:
    """It is computed once all the same: its first owner learns of it, leaves it out, and waits for the other."""
    slow, *others = servers
    asked = [slow.ask("a", "b")]
    call = await slow.link.calls.get()
    asked += [server.ask("b") for server in others for _ in range(2)]
    await until(lambda: any(server.link.asked for server in others))
    [owner] = [server for server in others if server.link.asked]
    await until(lambda: slow.flights[0].lost)
    call.answer()
    await until(lambda: slow.claims[-1].foreign)
    await owner.answer()
    assert [raws(result) for result in await asyncio.gather(*asked)] == [slow.truth("a", "b"), *[slow.truth("b")] * 4]
    assert [slow.link.asked, owner.link.asked] == [["a"], ["b"]]
    assert sum(len(server.link.asked) for server in servers) == 2
    assert claims_in(dedup_redis) == []


@pytest.mark.usefixtures("short_lease")
@served
async def test_an_owner_whose_claim_was_taken_over_gives_back_nothing(servers: list[Server], dedup_redis: RedisServer) -> None:
    """It is the other one's by then, and who comes later waits for that one."""
    slow, owner, third = servers
    failing = slow.ask("a")
    call = await slow.link.calls.get()
    asked = [owner.ask("a")]
    await until(lambda: owner.link.asked)
    call.answer(failed={"a"})
    with pytest.raises(ScorerFailed):
        await failing
    await slow.landed()
    asked.append(third.ask("a"))
    await third.waits_for_others()
    await owner.answer()
    assert [(await each).cache.misses for each in asked] == [1, 0]
    assert claims_in(dedup_redis) == []


@pytest.mark.alone
@served
async def test_who_leaves_gives_its_claims_back_at_once(servers: list[Server], dedup_redis: RedisServer) -> None:
    """But for what is with its Scorer, which it computes and stores; the others do not wait for the lease."""
    first, second, third = servers
    leaving = first.ask("a", "b")
    call = await first.link.calls.get()
    others = [second.ask("b"), third.ask("a")]
    await second.waits_for_others()
    await third.waits_for_others()
    leaving.cancel()
    begin = time.monotonic()
    assert await second.answer() == ["b"]
    assert time.monotonic() - begin < shared.LEASE_SECONDS / 2
    call.answer()
    assert [raws(await asked) for asked in others] == [first.truth("b"), first.truth("a")]
    assert [server.link.asked for server in servers] == [["a"], ["b"], []]
    await first.landed()
    assert claims_in(dedup_redis) == []


@pytest.mark.alone
@pytest.mark.parametrize("how", ["failed", "late", "error"])
@served
async def test_who_fails_gives_its_claims_back_at_once(servers: list[Server], dedup_redis: RedisServer, how: str) -> None:
    """Another one computes the pair; nothing of the failure is stored."""
    first, second, _ = servers
    failing = first.ask("a")
    call = await first.link.calls.get()
    other = second.ask("a")
    await second.waits_for_others()
    if how == "error":
        call.fail(ScorerFailed("broken"))
    else:
        call.answer(**{how: {"a"}})
    with pytest.raises(DeadlinePassed if how == "late" else ScorerFailed):
        await failing
    begin = time.monotonic()
    await second.answer()
    assert time.monotonic() - begin < shared.LEASE_SECONDS / 2
    assert (raws(await other), (await other).cache.misses) == (first.truth("a"), 1)
    assert claims_in(dedup_redis) == []


@served
async def test_refreshing_is_seen_by_all_and_storing_nothing_by_none(servers: list[Server], dedup_redis: RedisServer) -> None:
    """A process that knows a pair goes on with it; one that does not finds the new score."""
    first, second, third = servers
    old, new = first.truth("a"), [score + 0.5 for score in first.truth("a")]
    await first.known("a", use=CacheUse.NONE)
    assert dedup_redis.client().dbsize() == 0
    assert await first.known("a") == (old, (0, 1, 0))
    second.link.offset = 0.5
    assert await second.known("a", use=CacheUse.REFRESH) == (new, (0, 1, 0))
    assert await third.known("a") == (new, (1, 0, 0))
    assert await first.known("a") == (old, (1, 0, 0))


@pytest.mark.parametrize("use", [CacheUse.FULL, CacheUse.REFRESH])
@served
async def test_what_a_scorer_has_computed_is_stored_for_all_also_if_its_caller_has_left(
    servers: list[Server], use: CacheUse
) -> None:
    """Wanted or not."""
    first, second, _ = servers
    leaving = first.ask("a", use=use)
    call = await first.link.calls.get()
    leaving.cancel()
    await asyncio.wait({leaving})
    call.answer()
    await first.landed()
    assert (await second.known("a"))[1] == (1, 0, 0)


@pytest.mark.parametrize("use", [CacheUse.FULL, CacheUse.REFRESH])
@served
async def test_a_score_is_shared_under_the_model_that_gave_it(servers: list[Server], use: CacheUse) -> None:
    """And never under another one."""
    first, second, third = servers
    other = bytes([7] * 32)
    first.link.fingerprint = other
    await first.known("a", use=use)
    assert (await second.known("a"))[1] == (0, 1, 0)
    third.fingerprint = other.hex()
    assert await third.known("a") == (first.truth("a"), (1, 0, 0))


@played
async def test_who_finds_the_queue_full_is_answered_from_redis_or_fails_alone(
    tokenizer: PairTokenizer, entry_metrics: EntryMetrics, dedup_redis: RedisServer
) -> None:
    """Whoever waits for the same pairs begins anew."""
    full, other = (Server(tokenizer, entry_metrics, redis=dedup_redis, most=most) for most in (3, 10_000))
    async with clean([full, other]):
        await other.known("a")
        before = full.ask("x")
        call = await full.link.calls.get()
        assert astuple((await full.ask("a")).cache) == (1, 0, 0)
        big, small = full.ask("b", "c", "d"), full.ask("c")
        with pytest.raises(QueueFull):
            await big
        assert await full.answer() == ["c"]
        assert astuple((await small).cache) == (0, 1, 0)
        call.answer()
        await before
