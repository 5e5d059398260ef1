"""Deduplication in one process: whatever ends a request ends nobody else's, and leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
from dedup_parts import LONG, Server, make_tokenizer, raws, served, until
from pipeline_parts import FINGERPRINT

from bento_service.cache.keys import pair_keys
from bento_service.dedup import Progress
from bento_service.errors import DeadlinePassed, DocumentTooLong, QueueFull, ScorerDown, ScorerFailed
from bento_service.metrics import EntryMetrics
from bento_service.pairs import PairScore
from bento_service.schemas import CacheUse, RerankQuery
from bento_service.tokenizer import Cut, PairTokenizer
from bento_service.windows import Windows


@pytest.fixture(scope="module")
def tokenizer(builtin_folder: Path) -> Iterator[PairTokenizer]:
    """Load the built-in model's tokenizer once."""
    with make_tokenizer(builtin_folder) as made:
        yield made


@pytest.fixture
def server(tokenizer: PairTokenizer, entry_metrics: EntryMetrics) -> Server:
    """Make a server without a Redis whose Scorer takes one pair at a time."""
    return Server(tokenizer, entry_metrics, batch_pairs=1)


async def leave(task: asyncio.Task[Any]) -> None:
    """Be a client who goes away."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("wanted", [["b"], ["b", "a"]])
@served
async def test_who_waits_with_one_who_leaves_is_served(server: Server, wanted: list[str]) -> None:
    """What was in the queue is computed for the one who stays, once."""
    leaving = server.ask("a", "b")
    first = await server.link.calls.get()
    staying = server.ask(*wanted)
    await server.joined(2)
    await leave(leaving)
    first.answer()
    assert await server.answer() == ["b"]
    assert raws(await staying) == server.truth(*wanted)
    assert astuple((await staying).cache) == (0, 0, len(wanted))
    assert server.link.asked == ["a", "b"]


@served
async def test_of_one_who_leaves_alone_only_what_is_with_the_scorer_is_computed(server: Server) -> None:
    """And remembered: who comes while it is computed shares it, who comes later knows it."""
    leaving = server.ask("a", "b")
    first = await server.link.calls.get()
    await leave(leaving)
    late = server.ask("a")
    await server.joined(1)
    first.answer()
    assert astuple((await late).cache) == (0, 0, 1)
    await server.landed()
    assert server.link.asked == ["a"]
    assert await server.known("a", "b") == (server.truth("a", "b"), (1, 1, 0))
    assert server.link.asked == ["a", "b"]


@served
async def test_who_comes_while_another_one_s_work_is_dropped_begins_anew(server: Server) -> None:
    """At once, though what had gone out is still awaited."""
    leaving = server.ask("a", "b")
    first = await server.link.calls.get()
    leaving.cancel()
    await asyncio.wait({leaving})
    coming = server.ask("b")
    await until(lambda: server.admission._turns._queue)
    first.answer()
    assert await server.answer() == ["b"]
    assert astuple((await coming).cache) == (0, 1, 0)


@served
async def test_many_come_and_go_and_each_pair_is_computed_once(server: Server) -> None:
    """As long as one stays."""
    asked = [server.ask("a", "b", "c") for _ in range(10)]
    for task in (asked[0], *asked[2:]):
        await asyncio.sleep(0)
        await leave(task)
    assert [await server.answer() for _ in range(3)] == [["a"], ["b"], ["c"]]
    assert raws(await asked[1]) == server.truth("a", "b", "c")


@served
async def test_one_who_is_rejected_fails_nobody_else(tokenizer: PairTokenizer, entry_metrics: EntryMetrics) -> None:
    """For the others there may be room."""
    server = Server(tokenizer, entry_metrics, most=3)
    before = server.ask("x")
    call = await server.link.calls.get()
    big, small = server.ask("a", "b", "c"), server.ask("b")
    with pytest.raises(QueueFull):
        await big
    assert await server.answer() == ["b"]
    assert astuple((await small).cache) == (0, 1, 0)
    call.answer()
    await before
    await server.assert_nothing_left()


@pytest.mark.parametrize("use", list(CacheUse))
@served
async def test_for_one_who_is_rejected_nothing_begins(
    tokenizer: PairTokenizer, entry_metrics: EntryMetrics, use: CacheUse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server under overload refuses most of what comes, and its cores are the model's."""
    server = Server(tokenizer, entry_metrics, most=1)
    before = server.ask("x")
    call = await server.link.calls.get()
    with monkeypatch.context() as begun:
        begun.setattr(server.dedup, "_launch", None)
        with pytest.raises(QueueFull):
            await server.ask("a", use=use)
    shared = server.ask("x")
    call.answer()
    assert raws(await before) == raws(await shared) == server.truth("x")
    await server.assert_nothing_left()


@served
async def test_one_whose_time_is_up_fails_nobody_else(server: Server) -> None:
    """Its pairs in the queue are computed for those who have time."""
    hasty = server.ask("a", "b", seconds=0.1)
    first = await server.link.calls.get()
    patient = server.ask("a", "b")
    await server.joined(2)
    with pytest.raises(DeadlinePassed):
        await hasty
    first.answer()
    assert await server.answer() == ["b"]
    assert raws(await patient) == server.truth("a", "b")
    assert server.link.asked == ["a", "b"]


@served
async def test_one_who_refuses_truncation_fails_nobody_else(server: Server) -> None:
    """Who accepts it gets all; and who refuses it is refused also where the pair is known."""
    strict, lenient = server.ask("a", LONG, truncation=False), server.ask("a", LONG)
    with pytest.raises(DocumentTooLong, match=r"^document 1 "):
        await strict
    server.link.held = False
    assert (await lenient).truncated == [1]
    with pytest.raises(DocumentTooLong, match=r"^document 1 "):
        await server.ask("a", LONG, truncation=False)
    assert len(server.link.asked) == 2


@served
async def test_a_scorer_that_is_gone_is_told_to_all_at_once(tokenizer: PairTokenizer, entry_metrics: EntryMetrics) -> None:
    """Nobody tries again for himself."""
    server = Server(tokenizer, entry_metrics)
    asked = [server.ask("a", "b"), server.ask("b"), server.ask("a")]
    call = await server.link.calls.get()
    await server.joined(3)
    call.fail(ScorerDown("gone"))
    assert [type(error) for error in await asyncio.gather(*asked, return_exceptions=True)] == [ScorerDown] * 3
    assert server.link.asked == ["a", "b"]
    assert (await server.known("a", "b"))[1] == (0, 2, 0)
    await server.assert_nothing_left()


@served
async def test_a_pair_that_fails_fails_those_who_want_it_and_is_not_remembered(
    tokenizer: PairTokenizer, entry_metrics: EntryMetrics
) -> None:
    """The others of its request are known."""
    server = Server(tokenizer, entry_metrics)
    asked = [server.ask("a", "b"), server.ask("b"), server.ask("a")]
    call = await server.link.calls.get()
    await server.joined(3)
    call.answer(failed={"b"})
    leader, unlucky, lucky = await asyncio.gather(*asked, return_exceptions=True)
    assert (type(leader), type(unlucky)) == (ScorerFailed, ScorerFailed)
    assert not isinstance(lucky, BaseException)
    assert raws(lucky) == server.truth("a")
    assert server.link.asked == ["a", "b"]
    assert await server.known("a", "b") == (server.truth("a", "b"), (1, 1, 0))
    await server.assert_nothing_left()


@served
async def test_a_pair_that_fails_when_nobody_wants_it_any_more_disturbs_nobody(server: Server) -> None:
    """Its error is for whoever waits, and is not logged as one that nobody saw."""
    leaving = server.ask("a")
    call = await server.link.calls.get()
    await leave(leaving)
    call.answer(failed={"a"})
    await server.landed()
    assert (await server.known("a"))[1] == (0, 1, 0)


@pytest.mark.parametrize("raw", [float("nan"), float("inf"), float("-inf")])
@served
async def test_what_is_no_number_is_not_remembered(server: Server, raw: float) -> None:
    """Even if a Scorer calls it a score."""
    server.link.scores = {"a": raw}
    server.link.held = False
    with pytest.raises(ScorerFailed):
        await server.ask("a")
    server.link.scores = {}
    assert await server.known("a") == (server.truth("a"), (0, 1, 0))


@served
async def test_who_comes_after_a_pair_has_failed_begins_anew(server: Server) -> None:
    """Though the computation it failed in goes on for others."""
    leader, other = server.ask("a", "b"), server.ask("b")
    call = await server.link.calls.get()
    await server.joined(2)
    call.answer(failed={"a"})
    with pytest.raises(ScorerFailed):
        await leader
    again = server.ask("a")
    assert sorted([*await server.answer(), *await server.answer()]) == ["a", "b"]
    assert raws(await again) + raws(await other) == server.truth("a", "b")


@served
async def test_a_pair_that_came_too_late_is_computed_for_those_who_have_time(server: Server) -> None:
    """It has no score, so nothing is remembered."""
    leader, follower = server.ask("a"), server.ask("a")
    await server.answer(late={"a"})
    with pytest.raises(DeadlinePassed):
        await leader
    await server.answer()
    assert (raws(await follower), astuple((await follower).cache)) == (server.truth("a"), (0, 1, 0))
    assert server.link.asked == ["a", "a"]


@pytest.mark.parametrize("use", list(CacheUse))
@pytest.mark.parametrize("gone_out", [0, 1, 2])
@served
async def test_an_error_of_a_computation_leaves_nothing_behind(server: Server, use: CacheUse, gone_out: int) -> None:
    """Early or late; the one who began it gets it, and the next one begins anew."""
    keys = pair_keys(RerankQuery("q", []), ["a", "b"], fingerprint=FINGERPRINT, max_length=64)

    async def call() -> list[PairScore]:
        raise RuntimeError("mine")

    async def fail(places: Sequence[int], progress: Progress) -> None:
        task = asyncio.create_task(call())
        pairs = server.tokenizer.encode_now("q", ["a", "b"][:gone_out], Cut(), 0.0, 0)
        progress.sent(places[:gone_out], [part for pair in pairs for part in Windows(pair).parts()], task)
        await task

    with pytest.raises(RuntimeError, match="mine"):
        await server.dedup.answers(keys, fail, use=use, alone_seconds=lambda _: 0.0)
    await server.landed()
    assert await server.known("a", "b") == (server.truth("a", "b"), (0, 2, 0))


@served
async def test_stopping_awaits_what_has_gone_out(server: Server) -> None:
    """Its scores are remembered, and told to those who wait; a second time there is nothing to do."""
    asked = server.ask("a")
    call = await server.link.calls.get()
    stopping = asyncio.create_task(server.dedup.stop())
    for _ in range(3):
        await asyncio.sleep(0)
    assert not stopping.done()
    call.answer()
    await stopping
    await server.dedup.stop()
    assert (server.dedup._flights, server.dedup._tasks) == ({}, set())
    assert raws(await asked) == server.truth("a")
    assert (await server.known("a"))[1] == (1, 0, 0)
