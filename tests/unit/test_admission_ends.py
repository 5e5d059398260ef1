"""Admission: full queues, deadlines, departures and failures end a request, and the budgets come back."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from parts import FakeLink, ask, assert_idle, make_admission, played

from bento_service.errors import DeadlinePassed, QueueFull, RequestError, ScorerDown, ScorerFailed
from bento_service.metrics import EntryMetrics


@pytest.mark.parametrize(
    ("pairs_per_second", "workers", "seconds"), [(0.0, 1, 1), (1e9, 1, 1), (10.0, 1, 10), (10.0, 2, 20), (30.0, 1, 4)]
)
@played
async def test_a_full_queue_turns_a_request_away_and_tells_when_to_come_back(
    entry_metrics: EntryMetrics, pairs_per_second: float, workers: int, seconds: int
) -> None:
    """After the time that the Scorers that are up take to make room for it, at least a second; what was let in is served."""
    link, down = FakeLink(pairs_per_second=pairs_per_second), FakeLink(up=False, pairs_per_second=1000.0)
    admission = make_admission(entry_metrics, link, down, workers=workers, most=100)
    asked = [ask(admission, 60), ask(admission, 40, 60)]
    call = await link.calls.get()
    with pytest.raises(QueueFull) as caught:
        await ask(admission, 100)
    assert caught.value.retry_after_seconds == seconds
    assert admission.queued_pairs == 100
    link.calls.put_nowait(call)
    for _ in range(4):
        await link.answer()
    assert await asyncio.gather(*asked) == [list(range(60)), list(range(60, 100))]
    assert_idle(admission, entry_metrics)


@pytest.mark.parametrize("count", [32, 320])
@pytest.mark.parametrize("seconds", [None, 0.05], ids=["cancelled", "out of time"])
@played
async def test_what_waits_of_an_abandoned_request_is_never_sent(
    entry_metrics: EntryMetrics, seconds: float | None, count: int
) -> None:
    """Its call under way keeps its place until it ends; then the next request's call comes."""
    link = FakeLink()
    admission = make_admission(entry_metrics, link)
    leaving = ask(admission, count, seconds=seconds or 60)
    call = await link.calls.get()
    staying = ask(admission, 32, 1000)
    if seconds is None:
        leaving.cancel()
    with pytest.raises(DeadlinePassed if seconds else asyncio.CancelledError):
        await leaving
    assert admission.queued_pairs == 32
    assert admission._turns._under_way[cast("Any", link)].pairs == 32
    assert link.calls.empty()
    link.calls.put_nowait(call)
    assert (await link.answer())[0] == 0
    assert (await link.answer())[0] == 1000
    assert (await staying)[0] == 1000
    assert link.calls.empty()
    assert_idle(admission, entry_metrics)


@played
async def test_a_request_whose_time_is_over_on_arrival_is_not_sent(entry_metrics: EntryMetrics) -> None:
    """Tokenising may have taken it."""
    link = FakeLink()
    admission = make_admission(entry_metrics, link)
    with pytest.raises(DeadlinePassed):
        await ask(admission, 1, seconds=-1)
    following = ask(admission, 1, 1000)
    assert await link.answer() == [1000]
    assert await following == [1000]
    assert_idle(admission, entry_metrics)


@played
async def test_a_turn_that_its_caller_does_not_take_is_given_back(entry_metrics: EntryMetrics) -> None:
    """It was cancelled in the moment it was let through."""
    busy, late = FakeLink(), FakeLink(up=False)
    admission = make_admission(entry_metrics, busy, late)
    asked, leaving = ask(admission, 32), ask(admission, 32, 100)
    call = await busy.calls.get()
    late.up = True
    admission.wake()
    assert admission._turns._under_way[cast("Any", late)].pairs == 32
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert admission._turns._under_way[cast("Any", late)].pairs == 0
    busy.calls.put_nowait(call)
    await busy.answer()
    await asked
    assert late.calls.empty()
    assert_idle(admission, entry_metrics)


@played
async def test_without_a_scorer_every_request_is_refused_at_once(entry_metrics: EntryMetrics) -> None:
    """Those that wait, too, as soon as admission is told; what is under way ends by itself."""
    links = [FakeLink(), FakeLink(up=False)]
    admission = make_admission(entry_metrics, *links)
    asked, waiting = ask(admission, 64), [ask(admission, 32, 100), ask(admission, 1, 200)]
    _, end = await links[0].calls.get()
    links[0].up = False
    admission.wake()
    for each in [asked, *waiting, ask(admission, 1)]:
        with pytest.raises(ScorerDown) as caught:
            await each
        assert caught.value.retry_after_seconds
        assert caught.value.retry_after_seconds >= 1
    end.set_exception(ScorerDown("gone"))
    links[1].up = True
    following = ask(admission, 1, 300)
    await links[1].answer()
    assert await following == [300]
    assert_idle(admission, entry_metrics)


@pytest.mark.parametrize("error", [ScorerDown("gone"), ScorerFailed("broken")])
@played
async def test_a_failed_call_ends_its_request_but_no_other(entry_metrics: EntryMetrics, error: RequestError) -> None:
    """And little more of it is sent: at most the call that was about to go."""
    link = FakeLink()
    admission = make_admission(entry_metrics, link)
    failing, other = ask(admission, 320), ask(admission, 3, 1000)
    _, end = await link.calls.get()
    end.set_exception(error)
    calls = [await link.answer(), await link.answer()]
    with pytest.raises(type(error)):
        await failing
    assert [1000, 1001, 1002] in calls
    assert await other == [1000, 1001, 1002]
    assert link.calls.empty()
    assert_idle(admission, entry_metrics)
