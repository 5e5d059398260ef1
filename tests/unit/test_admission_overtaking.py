"""Admission: a small request joins the waiting batch, however big those before it are, and keeps nobody waiting for ever."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from parts import FakeLink, ask, assert_idle, make_admission, played

from bento_service import call_turns
from bento_service.admission import Admission, Place
from bento_service.errors import QueueFull, ScorerFailed
from bento_service.metrics import EntryMetrics
from bento_service.pairs import Outcome, PairScore

Call = tuple[list[int], asyncio.Future[list[PairScore]]]


@played
async def test_a_small_request_finds_room_beside_a_big_one(entry_metrics: EntryMetrics) -> None:
    """A part of the waiting batch is kept from a big request's later calls."""
    link = FakeLink(batch_pairs=128)
    admission = make_admission(entry_metrics, link, workers=1)
    big = ask(admission, 1000)
    await asyncio.sleep(0)
    calls = [await link.calls.get() for _ in range(4)]
    assert link.calls.empty()  # one runs, and the others are 96 of the 128 that may wait
    small = ask(admission, 10, 5000)
    numbers, end = await link.calls.get()
    assert numbers == list(range(5000, 5010))
    link.calls.put_nowait((numbers, end))
    await link.answer()
    await small
    for call in calls:
        link.calls.put_nowait(call)
    for _ in range(32):  # 1000 pairs in calls of 32
        await link.answer()
    await big
    assert_idle(admission, entry_metrics)


@played
async def test_small_requests_do_not_keep_a_big_one_waiting(entry_metrics: EntryMetrics) -> None:
    """Once a call's worth of them has overtaken its next call, that comes first."""
    link = FakeLink(batch_pairs=80)
    admission = make_admission(entry_metrics, link, workers=4)  # of whom each has 40 under way
    big = ask(admission, 160)
    first = await link.calls.get()
    small = [ask(admission, 8, 1000 * number) for number in range(1, 7)]
    for number in range(1, 5):
        overtaker = await link.calls.get()
        assert (overtaker[0][0], link.calls.empty()) == (1000 * number, True)
        link.calls.put_nowait(overtaker)
        await link.answer()
        await asyncio.sleep(0)
    await asyncio.wait(small[:4])
    assert link.calls.empty()  # there is room for another, but it is the big one's turn
    link.calls.put_nowait(first)
    await link.answer()
    call = await link.calls.get()
    assert call[0] == list(range(32, 64))
    for each in (big, *small):
        each.cancel()
    link.calls.put_nowait(call)
    await link.answer()
    await asyncio.wait([big, *small])


@played
async def test_the_waiting_batch_of_a_big_request_is_filled_when_the_running_one_ends(entry_metrics: EntryMetrics) -> None:
    """Not with each of its calls, or it would be as much as had been under way in all, and the next one what is left."""
    link = FakeLink(batch_pairs=128)
    admission = make_admission(entry_metrics, link, workers=1)
    big = ask(admission, 1000)
    first = await link.calls.get()
    waiting = [await link.calls.get() for _ in range(3)]
    end_batch([first], 1.0)
    later = [await link.calls.get() for _ in range(3)]
    for number, batch in enumerate((waiting, later), start=2):
        assert link.calls.empty()
        end_batch(batch, float(number))
        assert [len((await link.calls.get())[0]) for _ in range(3)] == [32] * 3
    await leave(big)


@played
async def test_in_company_a_big_request_has_one_call_in_a_batch(entry_metrics: EntryMetrics) -> None:
    """So a small one waits for a short batch and rides in a short one; others' calls fill what the big one leaves."""
    link = FakeLink(batch_pairs=128)
    admission = make_admission(entry_metrics, link, workers=1)
    big, small, first, waiting = await in_company(admission, link)
    end_batch([first], 1.0)
    [call] = [await link.calls.get()]
    assert link.calls.empty()
    other = ask(admission, 1000, 10_000)
    others = await link.calls.get()
    end_batch(waiting, 2.0)
    assert await small == list(range(5000, 5010))
    assert sorted([(await link.calls.get())[0][0], (await link.calls.get())[0][0]]) == [160, 10_032]
    assert link.calls.empty()
    assert (call[0][0], others[0][0]) == (128, 10_000)
    await leave(big, other)


@played
async def test_in_company_a_fast_model_s_batch_is_filled(entry_metrics: EntryMetrics) -> None:
    """With calls of a tenth of a second: nobody waits for long."""
    link = FakeLink(batch_pairs=128, pairs_per_second=640)
    admission = make_admission(entry_metrics, link, workers=1)
    big, small, first, waiting = await in_company(admission, link)
    end_batch([first], 1.0)
    assert [len((await link.calls.get())[0]) for _ in range(2)] == [32] * 2
    assert link.calls.empty()
    end_batch(waiting, 2.0)
    await small
    await leave(big)


@played
@pytest.mark.parametrize(
    ("pairs_per_second", "batch_pairs", "workers", "pairs"),
    [
        pytest.param(160, 40, 1, 15, id="a tenth of a second's, and two of them in what a batch has for later calls"),
        pytest.param(160, 40, 2, 8, id="this entry worker's share of it, but no fewer than eight"),
        pytest.param(48, 12, 1, 8, id="nor fewer to fill a batch"),
        pytest.param(20, 5, 1, 5, id="a batch is no more"),
        pytest.param(640, 160, 1, 30, id="no more than alone"),
        pytest.param(0, 40, 1, 32, id="as many as alone while the speed is unknown"),
    ],
)
async def test_in_company_a_slow_model_s_calls_are_small(
    entry_metrics: EntryMetrics, pairs_per_second: float, batch_pairs: int, workers: int, pairs: int
) -> None:
    """Those that are still to be cut: a request that comes waits for one of them and rides with another."""
    link = FakeLink(batch_pairs=batch_pairs, pairs_per_second=pairs_per_second)
    admission = make_admission(entry_metrics, link, workers=workers)
    alone = admission._turns.call_pairs
    big = ask(admission, 1000)
    first = await link.calls.get()
    assert len(first[0]) == alone
    other_big = ask(admission, 1000, 2000)
    await asyncio.sleep(0)
    assert admission._turns.call_pairs == alone  # a big one gains nothing from it
    small = ask(admission, 5, 5000)
    await asyncio.sleep(0)
    assert admission._turns.call_pairs == pairs <= alone
    crowd = [ask(admission, 5, 6000 + 5 * number) for number in range(10)]
    await asyncio.sleep(0)
    assert admission._turns.call_pairs == alone  # batches are long, whatever it has of them
    await leave(big, other_big, small, *crowd)


@played
async def test_in_company_a_slow_model_s_batch_has_a_small_call_of_a_big_request(entry_metrics: EntryMetrics) -> None:
    """One, and it is followed by as small ones."""
    link = FakeLink(batch_pairs=40, most=128, pairs_per_second=160)
    admission = make_admission(entry_metrics, link, workers=1)
    big = ask(admission, 1000)
    running, waiting = [await link.calls.get()], [await link.calls.get()]
    small = ask(admission, 10, 5000)
    waiting.append(await link.calls.get())
    for batch, pairs in enumerate((32, 15, 15, 15)):  # the first of them queued before the small one came
        end_batch(running, float(batch + 1))
        running, waiting = waiting, [await link.calls.get()]
        assert (len(waiting[0][0]), link.calls.empty()) == (pairs, True)
    assert small.done()
    await leave(big)


@played
async def test_in_company_a_big_request_has_one_call_in_a_batch_of_each_scorer(entry_metrics: EntryMetrics) -> None:
    """However full the others are."""
    links = [FakeLink(batch_pairs=128), FakeLink(batch_pairs=128)]
    admission = make_admission(entry_metrics, *links, workers=1)
    big = ask(admission, 1000)
    calls = [[await link.calls.get() for _ in range(4)] for link in links]
    small = [ask(admission, 32, 10_000 * number) for number in (1, 2)]  # one for each
    for link, under_way in zip(links, calls, strict=True):
        under_way.append(await link.calls.get())
    end_batch(calls[0][:1], 1.0)
    assert (await links[0].calls.get())[0] == list(range(256, 288))
    assert all(link.calls.empty() for link in links)
    await leave(big, *small)


@played
async def test_in_company_a_call_that_finds_one_scorer_full_does_not_join_another_of_its_own(entry_metrics: EntryMetrics) -> None:
    """It waits for the end of a batch."""
    links = [FakeLink(batch_pairs=128), FakeLink(batch_pairs=128)]
    admission = make_admission(entry_metrics, *links, workers=1)
    small, first, _ = await fill(admission, *links)
    big = ask(admission, 1000, 50_000)
    end_batch([first], 1.0)
    assert (await links[0].calls.get())[0] == list(range(50_000, 50_032))
    for _ in range(5):
        await asyncio.sleep(0)
    assert all(link.calls.empty() for link in links)
    await leave(big, *small)


@played
async def test_others_pass_a_big_request_that_has_its_call(entry_metrics: EntryMetrics) -> None:
    """With one Scorer, while the other is full and takes long."""
    links = [FakeLink(batch_pairs=128), FakeLink(batch_pairs=128)]
    admission = make_admission(entry_metrics, *links, workers=1)
    small, first, waiting = await fill(admission, *links)
    big, other = ask(admission, 1000, 50_000), ask(admission, 1000, 60_000)
    end_batch([first], 1.0)
    assert {(await links[0].calls.get())[0][0] for _ in range(2)} == {50_000, 60_000}
    end_batch(waiting, 2.0)
    assert {(await links[0].calls.get())[0][0] for _ in range(2)} == {50_032, 60_032}
    assert all(link.calls.empty() for link in links)
    await leave(big, other, *small)


@played
async def test_a_request_s_queries_have_one_first_call_among_them(entry_metrics: EntryMetrics) -> None:
    """Or they would fill whole batches before anybody else's."""
    link = FakeLink(batch_pairs=64)
    admission = make_admission(entry_metrics, link, workers=1)
    running, waiting = [ask(admission, 32, 1000 * number) for number in (1, 2)]
    calls = [await link.calls.get() for _ in range(2)]
    full = ask(admission, 32, 3000)
    calls.append(await link.calls.get())
    place, deadline = Place(), time.monotonic() + 60

    async def query(number: int) -> list[PairScore]:
        return await admission.score([str(number + pair).encode() for pair in range(30)], deadline=deadline, place=place)

    queries = [asyncio.create_task(query(10_000 * number)) for number in range(1, 6)]
    for _ in range(5):
        await asyncio.sleep(0)
    small = ask(admission, 10, 90_000)
    await asyncio.sleep(0)
    end_batch(calls[:1], 1.0)
    batch = [(await link.calls.get())[0] for _ in range(2)]
    assert [(each[0], len(each)) for each in batch] == [(10_000, 30), (90_000, 10)]
    await leave(running, waiting, full, small, *queries)


@pytest.mark.parametrize("given", [False, True])
@played
async def test_company_that_goes_away_is_none(entry_metrics: EntryMetrics, given: bool) -> None:
    """While it waits, or just when its turn has come."""
    link = FakeLink(batch_pairs=64)
    admission = make_admission(entry_metrics, link, workers=1)
    asked = [ask(admission, 32, 1000 * number) for number in range(1, 4)]
    first, *waiting = [await link.calls.get() for _ in range(3)]
    leaving = ask(admission, 10, 9000)
    await asyncio.sleep(0)
    assert any(turn.size == 10 for turn in admission._turns._company)
    if given:
        end_batch([first], 1.0)
        for _ in range(3):
            await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    if not given:
        end_batch([first], 1.0)
    elif not link.calls.empty():
        waiting.append(await link.calls.get())
    end_batch(waiting, 2.0)
    await asyncio.gather(*asked)
    if admission._calls:
        await asyncio.wait(admission._calls)
    assert_idle(admission, entry_metrics)


@played
async def test_a_batch_that_took_all_that_was_sent_leaves_none_waiting(entry_metrics: EntryMetrics) -> None:
    """What goes out when its first call comes back begins at once when its last one has."""
    link = FakeLink(batch_pairs=128)
    admission = make_admission(entry_metrics, link, workers=1)
    big = ask(admission, 1000)
    first, *together = [await link.calls.get() for _ in range(4)]
    end_batch([first], 1.0)
    assert [len((await link.calls.get())[0]) for _ in range(3)] == [32] * 3
    end_batch(together, 1.0)
    assert [len((await link.calls.get())[0]) for _ in range(3)] == [32] * 3
    assert link.calls.empty()
    await leave(big)


@played
async def test_a_call_that_fails_leaves_the_others_waiting(entry_metrics: EntryMetrics) -> None:
    """Another request gets the room that it had, and no more."""
    link = FakeLink(batch_pairs=128)
    admission = make_admission(entry_metrics, link, workers=1)
    steady, failing = ask(admission, 96), ask(admission, 32, 5000)
    first, *waiting = [await link.calls.get() for _ in range(4)]
    waiting.pop()[1].set_exception(ScorerFailed("broken"))
    with pytest.raises(ScorerFailed):
        await failing
    others = [ask(admission, 32, 10_000 * number) for number in (1, 2, 3)]
    waiting += [await link.calls.get(), await link.calls.get()]
    assert link.calls.empty()
    end_batch([first], 1.0)
    last = await link.calls.get()
    end_batch(waiting, 2.0)
    end_batch([last], 3.0)
    await asyncio.gather(steady, *others)
    assert_idle(admission, entry_metrics)


@played
async def test_a_small_request_begins_at_once_in_what_a_big_one_leaves(entry_metrics: EntryMetrics) -> None:
    """Where nobody may wait; the big one's next call does, and not for room."""
    link = FakeLink(batch_pairs=128)
    admission = make_admission(entry_metrics, link, workers=1, requests=0)
    big, early, first, waiting = await in_company(admission, link)
    end_batch([first], 1.0)
    [following] = [await link.calls.get()]
    late = ask(admission, 10, 6000)
    waiting.append(await link.calls.get())
    end_batch(waiting, 2.0)
    assert [(await each)[0] for each in (early, late)] == [5000, 6000]
    end_batch([following], 3.0)
    await leave(big)


@played
async def test_what_may_overtake_no_more_does_not_begin_at_once(entry_metrics: EntryMetrics) -> None:
    """So where nobody may wait, it is turned away."""
    link = FakeLink(batch_pairs=80)
    admission = make_admission(entry_metrics, link, workers=4, requests=0)
    big = ask(admission, 160)
    await link.calls.get()
    for number in range(1, 5):
        small = ask(admission, 8, 1000 * number)
        end_batch([await link.calls.get()], float(number))
        await small
    with pytest.raises(QueueFull):
        await ask(admission, 8, 5000)
    await leave(big)


@played
async def test_a_big_request_has_the_batch_to_itself_again_when_nobody_comes(
    entry_metrics: EntryMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A while after the last small one."""
    monkeypatch.setattr(call_turns, "_COMPANY_SECONDS", 0.05)
    link = FakeLink(batch_pairs=128)
    admission = make_admission(entry_metrics, link, workers=1)
    big, small, first, waiting = await in_company(admission, link)
    await asyncio.sleep(0.1)
    end_batch([first], 1.0)
    following = await link.calls.get()
    end_batch(waiting, 2.0)
    await small
    await link.calls.get()
    assert link.calls.empty()  # it has just gone
    await asyncio.sleep(0.1)
    end_batch([following], 3.0)
    assert [len((await link.calls.get())[0]) for _ in range(3)] == [32] * 3
    await leave(big)


@pytest.mark.parametrize(
    ("size", "batch_pairs", "most", "calls"),
    [
        (10, 34, 128, 3),
        (10, 36, 128, 4),
        (10, 44, 128, 4),
        (10, 46, 128, 5),
        (10, 36, 39, 3),
        (20, 31, 128, 2),
        (20, 51, 128, 3),
        (32, 50, 128, 2),
    ],
)
@played
async def test_the_waiting_batch_of_small_requests_is_as_near_to_a_batch_as_they_come(
    entry_metrics: EntryMetrics, size: int, batch_pairs: int, most: int, calls: int
) -> None:
    """Half a call too much is as good as half a call too little; but what BentoML would cut does not go out together."""
    link = FakeLink(batch_pairs, most=most)
    admission = make_admission(entry_metrics, link, workers=1)
    asked = [ask(admission, size, 100 * number) for number in range(20)]
    running = [await link.calls.get()]
    for batch in range(1, 4):
        waiting = [await link.calls.get() for _ in range(calls)]
        assert link.calls.empty()
        end_batch(running, float(batch))
        running = waiting
        await asyncio.sleep(0)
    await leave(*asked)


async def in_company(
    admission: Admission, link: FakeLink
) -> tuple[asyncio.Task[list[float]], asyncio.Task[list[float]], Call, list[Call]]:
    """Begin a request of 1,000 pairs, and one of 10 from 5000 on beside it: both, the call that runs, and those of the waiting batch."""
    big = ask(admission, 1000)
    first, *waiting = [await link.calls.get() for _ in range(4)]
    small = ask(admission, 10, 5000)
    return big, small, first, [*waiting, await link.calls.get()]


async def fill(admission: Admission, one: FakeLink, other: FakeLink) -> tuple[list[asyncio.Task[list[float]]], Call, list[Call]]:
    """Fill two Scorers with requests of one call: these, and of the first Scorer the call that runs and those of the waiting batch."""
    asked = [ask(admission, 32, 1000 * number) for number in range(1, 11)]
    first, *waiting = [await one.calls.get() for _ in range(5)]
    for _ in range(5):
        await other.calls.get()
    return asked, first, waiting


async def leave(*asked: asyncio.Task[Any]) -> None:
    """Let requests be gone."""
    for each in asked:
        each.cancel()
    await asyncio.wait(asked)


def end_batch(calls: list[Call], begun: float) -> None:
    """Answer the calls of one batch."""
    for numbers, end in calls:
        end.set_result([PairScore(float(number), Outcome.SCORED, begun=begun) for number in numbers])
