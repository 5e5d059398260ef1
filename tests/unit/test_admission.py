"""Admission: requests take turns, and what is under way or waits stays within its bounds."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from parts import FakeLink, ask, assert_idle, make_admission, played

from bento_service.call_turns import MAX_CALL_PAIRS
from bento_service.errors import DeadlinePassed, ScorerFailed
from bento_service.metrics import EntryMetrics
from bento_service.pairs import Outcome, PairScore


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (32, [32]), (33, [32, 1]), (100, [32, 32, 32, 4])])
@played
async def test_a_request_goes_out_in_calls_of_at_most_32_and_comes_back_in_order(
    entry_metrics: EntryMetrics, count: int, sizes: list[int]
) -> None:
    """Also when its calls end in another order."""
    link = FakeLink(batch_pairs=1366)  # of which three quarters are 32 calls of 32
    admission = make_admission(entry_metrics, link)
    asked = ask(admission, count)
    calls = [await link.calls.get() for _ in sizes]
    assert [len(numbers) for numbers, _ in calls] == sizes
    for numbers, end in reversed(calls):
        end.set_result([PairScore(float(number), Outcome.SCORED) for number in numbers])
    assert await asked == list(range(count))
    assert_idle(admission, entry_metrics)


@played
async def test_a_small_request_gets_its_turn_between_the_calls_of_a_big_one(entry_metrics: EntryMetrics) -> None:
    """It waits for a call or two, not for all."""
    link = FakeLink()
    admission = make_admission(entry_metrics, link)
    big = ask(admission, 320)
    calls = [await link.answer()]
    small = ask(admission, 2, 1000)
    calls += [await link.answer() for _ in range(10)]
    assert calls.index([1000, 1001]) <= 2
    assert [number for call in calls if call != [1000, 1001] for number in call] == list(range(320))
    assert (await small, await big) == ([1000, 1001], list(range(320)))
    assert_idle(admission, entry_metrics)


@pytest.mark.parametrize(
    ("batch_pairs", "longest", "workers", "most"),
    [
        (100, 100, 1, 200),
        (100, 100, 2, 100),
        (100, 100, 4, 50),
        (10, 10, 1, 20),
        (1, 1, 8, 1),
        (100, 128, 1, 232),
    ],
)
@played
async def test_what_is_under_way_fills_a_worker_s_share_and_no_more(
    entry_metrics: EntryMetrics, batch_pairs: int, longest: int, workers: int, most: int
) -> None:
    """A running and a waiting batch over all workers, and half a call where BentoML takes that; but a single call may always go."""
    sizes = np.random.default_rng(batch_pairs).integers(1, 90, size=40).tolist()
    link = FakeLink(batch_pairs, most=longest)
    admission = make_admission(entry_metrics, link, workers=workers)
    most_call, call_pairs = min(MAX_CALL_PAIRS, batch_pairs), admission._turns.call_pairs
    asked = [ask(admission, size) for size in sizes]
    under_way = []
    for _ in range(sum(1 if size <= most_call else -(-size // call_pairs) for size in sizes)):
        await link.answer()
        under_way.append(admission._turns.under_way_pairs)
    assert await asyncio.gather(*asked) == [list(range(size)) for size in sizes]
    assert most - most_call < max(under_way) <= most
    assert_idle(admission, entry_metrics)


@played
async def test_the_scorer_with_the_least_under_way_gets_the_next_call(entry_metrics: EntryMetrics) -> None:
    """Two Scorers share the work; one that is down gets none."""
    links = [FakeLink(), FakeLink(), FakeLink(up=False)]
    admission = make_admission(entry_metrics, *links)
    asked = [ask(admission, count, start) for count, start in ((20, 0), (10, 20), (10, 30), (10, 40))]
    calls = [(await link.answer())[0] for link in (links[0], links[1], links[1], links[0])]
    assert calls == [0, 20, 30, 40]
    await asyncio.gather(*asked)
    assert links[2].calls.empty()
    assert_idle(admission, entry_metrics)


@played
async def test_a_scorer_without_room_does_not_hold_up_one_that_has_it(entry_metrics: EntryMetrics) -> None:
    """A slow Scorer that is full has less under way than a fast one that is not."""
    slow, fast = FakeLink(batch_pairs=4), FakeLink(batch_pairs=1000)
    admission = make_admission(entry_metrics, slow, fast, workers=1)
    asked = [ask(admission, 4, start) for start in range(0, 24, 4)]
    firsts = [(await slow.answer())[0], *[(await fast.answer())[0] for _ in range(4)], (await slow.answer())[0]]
    assert firsts == [0, 4, 12, 16, 20, 8]
    assert await asyncio.gather(*asked) == [list(range(start, start + 4)) for start in range(0, 24, 4)]
    assert_idle(admission, entry_metrics)


@played
async def test_a_scorer_that_comes_up_takes_what_waits(entry_metrics: EntryMetrics) -> None:
    """As soon as admission is told."""
    busy, late = FakeLink(), FakeLink(up=False)
    admission = make_admission(entry_metrics, busy, late)
    asked = [ask(admission, 32), ask(admission, 32, 100)]
    call = await busy.calls.get()
    late.up = True
    admission.wake()
    assert (await late.answer())[0] == 100
    assert (await asked[1])[0] == 100
    busy.calls.put_nowait(call)
    await busy.answer()
    await asked[0]
    assert_idle(admission, entry_metrics)


@played
async def test_a_request_larger_than_the_queue_is_served_when_nothing_waits(entry_metrics: EntryMetrics) -> None:
    """Otherwise it could never be."""
    link = FakeLink()
    admission = make_admission(entry_metrics, link, most=5)
    asked = ask(admission, 20)
    await link.answer()
    assert await asked == list(range(20))
    assert_idle(admission, entry_metrics)


@pytest.mark.parametrize(("outcome", "error"), [(Outcome.LATE, DeadlinePassed), (Outcome.FAILED, ScorerFailed)])
@played
async def test_a_pair_without_a_score_ends_its_request(
    entry_metrics: EntryMetrics, outcome: Outcome, error: type[Exception]
) -> None:
    """A late one with 504, a failed one with 500: never with a made-up score."""
    link = FakeLink()
    admission = make_admission(entry_metrics, link)
    asked = ask(admission, 2)
    await link.answer(outcome)
    with pytest.raises(error):
        await asked
    assert_idle(admission, entry_metrics)
