"""Deduplication in one process: no pair is computed twice, and what is known is known to all."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

import pytest
from dedup_parts import LONG, Server, make_tokenizer, raws, served, until

from bento_service import dedup, waiting
from bento_service.metrics import EntryMetrics
from bento_service.schemas import CacheUse
from bento_service.tokenizer import PairTokenizer


@pytest.fixture(scope="module")
def tokenizer(builtin_folder: Path) -> Iterator[PairTokenizer]:
    """Load the built-in model's tokenizer once."""
    with make_tokenizer(builtin_folder) as made:
        yield made


@pytest.fixture
def server(tokenizer: PairTokenizer, entry_metrics: EntryMetrics) -> Server:
    """Make a server without a Redis."""
    return Server(tokenizer, entry_metrics)


@served
async def test_a_pair_in_two_requests_at_once_is_computed_once(server: Server) -> None:
    """The second one shares it, and both are counted for what they are."""
    first = server.ask("sea")
    call = await server.link.calls.get()
    second = server.ask("sea", "sea")
    await server.joined(2)
    call.answer()
    assert raws(await first) == server.truth("sea")
    assert raws(await second) == server.truth("sea", "sea")
    assert (astuple((await first).cache), astuple((await second).cache)) == ((0, 1, 0), (0, 0, 2))
    assert server.link.asked == ["sea"]
    assert server.metrics.cache_misses._value.get() == 1
    assert server.metrics.shared_pairs.labels("process")._value.get() == 1


@served
async def test_overlapping_requests_share_what_they_share(server: Server) -> None:
    """The rest of the second one goes out at once."""
    first = server.ask("a", "b")
    call = await server.link.calls.get()
    second = server.ask("c", "b", "a", "d")
    assert await server.answer() == ["c", "d"]
    call.answer()
    assert raws(await first) == server.truth("a", "b")
    assert raws(await second) == server.truth("c", "b", "a", "d")
    assert astuple((await second).cache) == (0, 2, 2)
    assert server.link.asked == ["a", "b", "c", "d"]


@served
async def test_of_fifty_documents_two_are_computed_where_the_others_are_known(server: Server) -> None:
    """And nothing of them is computed again afterwards."""
    texts = [f"number {number}" for number in range(50)]
    await server.known(*texts[:20], *texts[22:])
    assert len(server.link.asked) == 48
    assert await server.known(*texts) == (server.truth(*texts), (48, 2, 0))
    assert server.link.asked[48:] == texts[20:22]
    assert await server.known(*texts) == (server.truth(*texts), (50, 0, 0))
    assert server.metrics.cache_hits.labels("process")._value.get() == 98


@served
async def test_another_query_or_limit_is_another_pair(server: Server) -> None:
    """One that cuts nothing is no limit."""
    await server.known(LONG)
    for fields, misses in (
        ({"query": "p"}, 1),
        ({"max_tokens_per_doc": 5}, 1),
        ({"max_tokens_per_doc": 5}, 0),
        ({"max_tokens_per_doc": 64}, 0),
        ({"raw_scores": False, "top_n": 1, "score_threshold": -9.0, "return_documents": True, "model": "x"}, 0),
    ):
        server.link.held = False
        assert (await server.ask(LONG, **fields)).cache.misses == misses


@served
async def test_without_a_memory_requests_still_share_what_is_being_computed(
    tokenizer: PairTokenizer, entry_metrics: EntryMetrics
) -> None:
    """And only that."""
    server = Server(tokenizer, entry_metrics, cached=0)
    asked = [server.ask("sea") for _ in range(3)]
    await server.joined(3)
    await server.answer()
    assert [astuple(result.cache) for result in await asyncio.gather(*asked)] == [(0, 1, 0), (0, 0, 1), (0, 0, 1)]
    assert await server.known("sea") == (server.truth("sea"), (0, 1, 0))
    await server.assert_nothing_left()


@served
async def test_what_is_answered_is_told_before_its_whole_request_is(
    tokenizer: PairTokenizer, entry_metrics: EntryMetrics
) -> None:
    """A follower waits for its own pairs alone."""
    server = Server(tokenizer, entry_metrics, batch_pairs=1)
    leader = server.ask("a", "b")
    first = await server.link.calls.get()
    follower = server.ask("a")
    await server.joined(2)
    first.answer()
    assert raws(await follower) == server.truth("a")
    assert not leader.done()
    assert await server.known("a") == (server.truth("a"), (1, 0, 0))
    await server.answer()
    assert raws(await leader) == server.truth("a", "b")
    await server.assert_nothing_left()


@served
async def test_its_own_is_computed_before_others_are_waited_for(server: Server) -> None:
    """What others compute may take long."""
    others = server.ask("a")
    call = await server.link.calls.get()
    asked = server.ask("a", "b")
    assert await server.answer() == ["b"]
    assert await server.known("b") == (server.truth("b"), (1, 0, 0))
    assert not asked.done()
    call.answer()
    assert raws(await others) + raws(await asked) == server.truth("a", "a", "b")


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> float:
    """Let patience end in a moment, where nothing else prolongs it."""
    for room in (dedup, waiting):
        monkeypatch.setattr(room, "LEASE_SECONDS", 0.1)
    return 0.1


@pytest.mark.usefixtures("short_lease")
@served
async def test_what_is_with_a_scorer_is_waited_for_however_long(server: Server) -> None:
    """The same Scorers would have it behind what they have already."""
    asked = [server.ask("a") for _ in range(4)]
    call = await server.link.calls.get()
    await server.joined(4)
    await asyncio.sleep(0.6)
    assert server.link.asked == ["a"]
    call.answer()
    assert [raws(result) for result in await asyncio.gather(*asked)] == [server.truth("a")] * 4
    assert server.link.asked == ["a"]


@pytest.mark.parametrize("followers", [1, 5])
@pytest.mark.usefixtures("short_lease")
@served
async def test_what_a_slow_flight_has_not_sent_moves_to_one_who_has_lost_patience(
    tokenizer: PairTokenizer, entry_metrics: EntryMetrics, followers: int
) -> None:
    """It is computed once all the same: the slow one leaves it out when its turn comes, and waits for the other."""
    server = Server(tokenizer, entry_metrics, batch_pairs=1)
    slow = server.ask("a", "b", "c")
    call = await server.link.calls.get()
    asked = [server.ask("c") for _ in range(followers)]
    await server.joined(1 + followers)
    [first] = set(server.dedup._flights.values())
    await until(lambda: server.dedup._flights.get(list(first.answers)[2]) is not first)
    call.answer()
    assert sorted([*await server.answer(), *await server.answer()]) == ["b", "c"]
    assert [raws(result) for result in await asyncio.gather(*asked)] == [server.truth("c")] * followers
    assert raws(await slow) == server.truth("a", "b", "c")
    assert sorted(server.link.asked) == ["a", "b", "c"]
    await server.assert_nothing_left()


@served
async def test_of_several_who_lose_patience_together_one_takes_over(
    tokenizer: PairTokenizer, entry_metrics: EntryMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others give that one half a lease before the next one tries."""
    for room in (dedup, waiting):
        monkeypatch.setattr(room, "LEASE_SECONDS", 0.8)
    server = Server(tokenizer, entry_metrics, batch_pairs=1)
    asked = [server.ask("a", "b")]
    call = await server.link.calls.get()
    asked += [server.ask("b") for _ in range(3)]
    await until(lambda: len(server.flights) == 2)
    begin = time.monotonic()
    await until(lambda: len(server.flights) == 3)
    assert time.monotonic() - begin > 0.35
    call.answer()
    assert await server.answer() == ["b"]
    assert [raws(result) for result in await asyncio.gather(*asked)] == [server.truth("a", "b"), *[server.truth("b")] * 3]
    assert server.link.asked == ["a", "b"]
    await server.assert_nothing_left()


@served
async def test_patience_grows_with_what_the_request_would_take_alone(
    tokenizer: PairTokenizer, entry_metrics: EntryMetrics, short_lease: float
) -> None:
    """Some seconds here, at the measured speed: nobody takes anything over within the lease."""
    server = Server(tokenizer, entry_metrics, batch_pairs=1)
    server.link.pairs_per_second = 0.1
    slow = server.ask("a", "b")
    call = await server.link.calls.get()
    asked = server.ask("b")
    await server.joined(2)
    flights = dict(server.dedup._flights)
    await asyncio.sleep(10 * short_lease)
    assert server.dedup._flights == flights
    call.answer()
    assert await server.answer() == ["b"]
    assert (raws(await slow), raws(await asked)) == (server.truth("a", "b"), server.truth("b"))
    assert server.link.asked == ["a", "b"]


@served
async def test_a_request_that_refreshes_computes_again_and_stores(server: Server) -> None:
    """Over what is known."""
    old, new = server.truth("a"), [score + 0.5 for score in server.truth("a")]
    await server.known("a")
    server.link.offset = 0.5
    assert await server.known("a") == (old, (1, 0, 0))
    assert await server.known("a", use=CacheUse.REFRESH) == (new, (0, 1, 0))
    assert await server.known("a") == (new, (1, 0, 0))


@served
async def test_a_request_that_stores_nothing_reads_nothing_either(server: Server) -> None:
    """What is known stays what it is."""
    old, new = server.truth("a"), [score + 0.5 for score in server.truth("a")]
    assert await server.known("a", use=CacheUse.NONE) == (old, (0, 1, 0))
    assert await server.known("a") == (old, (0, 1, 0))
    server.link.offset = 0.5
    assert await server.known("a", use=CacheUse.NONE) == (new, (0, 1, 0))
    assert await server.known("a") == (old, (1, 0, 0))


@pytest.mark.parametrize(
    "uses", [(CacheUse.FULL, CacheUse.NONE), (CacheUse.NONE, CacheUse.FULL), (CacheUse.REFRESH, CacheUse.FULL)]
)
@served
async def test_requests_that_do_not_use_the_cache_share_with_nobody(server: Server, uses: tuple[CacheUse, ...]) -> None:
    """Neither way."""
    asked = []
    for use in uses:
        asked.append(server.ask("a", use=use))
        await until(lambda: len(server.link.asked) == len(asked))
    for _ in uses:
        await server.answer()
    assert [astuple(result.cache) for result in await asyncio.gather(*asked)] == [(0, 1, 0)] * 2


@pytest.mark.parametrize("use", [CacheUse.FULL, CacheUse.REFRESH])
@served
async def test_a_score_is_stored_under_the_model_that_gave_it(server: Server, use: CacheUse) -> None:
    """A Scorer may have come back as another one, before this process has heard of it."""
    other = bytes([7] * 32)
    server.link.fingerprint = other
    assert (await server.known("a", "b", use=use))[1] == (0, 2, 0)
    assert (await server.known("a"))[1] == (0, 1, 0)
    server.fingerprint = other.hex()
    assert await server.known("b", "a") == (server.truth("b", "a"), (2, 0, 0))


@served
async def test_a_score_of_zero_is_known_like_any_other(server: Server) -> None:
    """Nothing is not no score."""
    server.link.scores = {"zero": 0.0, "minus zero": -0.0}
    for counts in ((0, 2, 0), (2, 0, 0)):
        found, given = await server.known("zero", "minus zero")
        assert (found, [math.copysign(1, raw) for raw in found], given) == ([0.0, 0.0], [1.0, -1.0], counts)


@served
async def test_without_a_model_heard_of_nothing_is_remembered(server: Server) -> None:
    """Nobody knows under which name."""
    known = server.fingerprint
    for fingerprint in (None, None, known):
        server.fingerprint = fingerprint
        assert (await server.known("a"))[1] == (0, 1, 0)
