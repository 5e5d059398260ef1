"""Admission: full queues, deadlines, departures and failures end a request, and the budgets come back."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, cast

import pytest
from prometheus_client import REGISTRY

from bento_service.admission import Admission
from bento_service.errors import DeadlinePassed, QueueFull, RequestError, ScorerDown, ScorerFailed
from bento_service.metrics import EntryMetrics
from bento_service.pairs import Outcome, PairScore


@pytest.fixture(scope="module")
def metrics() -> Iterator[EntryMetrics]:
    """Make metrics in a registry that no other test sees."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(REGISTRY, "_collector_to_names", {})
        patch.setattr(REGISTRY, "_names_to_collectors", {})
        yield EntryMetrics()


class FakeLink:
    """A Scorer whose calls wait in `calls`, each with the future that ends it; a pair's score is its number."""

    def __init__(self, batch_pairs: int = 16, *, up: bool = True, pairs_per_second: float = 0.0) -> None:
        self.batch_pairs, self.up, self.pairs_per_second = batch_pairs, up, pairs_per_second
        self.calls: asyncio.Queue[tuple[list[int], asyncio.Future[list[PairScore]]]] = asyncio.Queue()

    async def score(self, blobs: list[bytes]) -> list[PairScore]:
        """Wait until the test ends the call."""
        end = asyncio.get_running_loop().create_future()
        self.calls.put_nowait(([int(blob) for blob in blobs], end))
        return cast("list[PairScore]", await end)

    async def answer(self, outcome: Outcome = Outcome.SCORED) -> list[int]:
        """End the next call, once it has come, and tell which pairs were in it."""
        numbers, end = await self.calls.get()
        end.set_result([PairScore(float(number), outcome) for number in numbers])
        return numbers


def _admission(metrics: EntryMetrics, *links: FakeLink, workers: int = 1, most: int = 10_000) -> Admission:
    return Admission(cast("Any", links), entry_workers=workers, max_queue_pairs=most, metrics=metrics)


def _ask(admission: Admission, count: int, start: int = 0, *, seconds: float = 60.0) -> asyncio.Task[list[float]]:
    """Begin to score `count` pairs, numbered from `start` on."""
    blobs = [str(number).encode() for number in range(start, start + count)]
    return asyncio.create_task(admission.score(blobs, deadline=time.monotonic() + seconds))


def _assert_idle(admission: Admission, metrics: EntryMetrics) -> None:
    """Everything that was taken has been given back."""
    assert admission.queued_pairs == 0
    assert set(admission._under_way.values()) == {0}
    assert not admission._turns
    assert not admission._calls
    assert (metrics.requests_waiting._value.get(), metrics.requests_active._value.get()) == (0, 0)


def _played(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test, but not for ever."""

    @functools.wraps(test)
    def played(**fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(**fixtures), 10))

    return played


@pytest.mark.parametrize(
    ("pairs_per_second", "workers", "seconds"), [(0.0, 1, 1), (1e9, 1, 1), (10.0, 1, 10), (10.0, 2, 20), (30.0, 1, 4)]
)
@_played
async def test_a_full_queue_turns_a_request_away_and_tells_when_to_come_back(
    metrics: EntryMetrics, pairs_per_second: float, workers: int, seconds: int
) -> None:
    """After the time that the queue takes on the Scorers that are up, at least a second; what was let in is served."""
    link, down = FakeLink(pairs_per_second=pairs_per_second), FakeLink(up=False, pairs_per_second=1000.0)
    admission = _admission(metrics, link, down, workers=workers, most=100)
    asked = [_ask(admission, 60), _ask(admission, 40, 60)]
    call = await link.calls.get()
    with pytest.raises(QueueFull) as caught:
        await _ask(admission, 1)
    assert caught.value.retry_after_seconds == seconds
    assert admission.queued_pairs == 100
    link.calls.put_nowait(call)
    for _ in range(4):
        await link.answer()
    assert await asyncio.gather(*asked) == [list(range(60)), list(range(60, 100))]
    _assert_idle(admission, metrics)


@pytest.mark.parametrize("count", [32, 320])
@pytest.mark.parametrize("seconds", [None, 0.05], ids=["cancelled", "out of time"])
@_played
async def test_what_waits_of_an_abandoned_request_is_never_sent(metrics: EntryMetrics, seconds: float | None, count: int) -> None:
    """Its call under way keeps its place until it ends; then the next request's call comes."""
    link = FakeLink()
    admission = _admission(metrics, link)
    leaving = _ask(admission, count, seconds=seconds or 60)
    call = await link.calls.get()
    staying = _ask(admission, 32, 1000)
    if seconds is None:
        leaving.cancel()
    with pytest.raises(DeadlinePassed if seconds else asyncio.CancelledError):
        await leaving
    assert admission.queued_pairs == 32
    assert admission._under_way[cast("Any", link)] == 32
    assert link.calls.empty()
    link.calls.put_nowait(call)
    assert (await link.answer())[0] == 0
    assert (await link.answer())[0] == 1000
    assert (await staying)[0] == 1000
    assert link.calls.empty()
    _assert_idle(admission, metrics)


@_played
async def test_a_request_whose_time_is_over_on_arrival_is_not_sent(metrics: EntryMetrics) -> None:
    """Tokenising may have taken it."""
    link = FakeLink()
    admission = _admission(metrics, link)
    with pytest.raises(DeadlinePassed):
        await _ask(admission, 1, seconds=-1)
    following = _ask(admission, 1, 1000)
    assert await link.answer() == [1000]
    assert await following == [1000]
    _assert_idle(admission, metrics)


@_played
async def test_a_turn_that_its_caller_does_not_take_is_given_back(metrics: EntryMetrics) -> None:
    """It was cancelled in the moment it was let through."""
    busy, late = FakeLink(), FakeLink(up=False)
    admission = _admission(metrics, busy, late)
    asked, leaving = _ask(admission, 32), _ask(admission, 32, 100)
    call = await busy.calls.get()
    late.up = True
    admission.wake()
    assert admission._under_way[cast("Any", late)] == 32
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert admission._under_way[cast("Any", late)] == 0
    busy.calls.put_nowait(call)
    await busy.answer()
    await asked
    assert late.calls.empty()
    _assert_idle(admission, metrics)


@_played
async def test_without_a_scorer_every_request_is_refused_at_once(metrics: EntryMetrics) -> None:
    """Those that wait, too, as soon as admission is told; what is under way ends by itself."""
    links = [FakeLink(), FakeLink(up=False)]
    admission = _admission(metrics, *links)
    asked, waiting = _ask(admission, 64), [_ask(admission, 32, 100), _ask(admission, 1, 200)]
    _, end = await links[0].calls.get()
    links[0].up = False
    admission.wake()
    for each in [asked, *waiting, _ask(admission, 1)]:
        with pytest.raises(ScorerDown) as caught:
            await each
        assert caught.value.retry_after_seconds
        assert caught.value.retry_after_seconds >= 1
    end.set_exception(ScorerDown("gone"))
    links[1].up = True
    following = _ask(admission, 1, 300)
    await links[1].answer()
    assert await following == [300]
    _assert_idle(admission, metrics)


@pytest.mark.parametrize("error", [ScorerDown("gone"), ScorerFailed("broken")])
@_played
async def test_a_failed_call_ends_its_request_but_no_other(metrics: EntryMetrics, error: RequestError) -> None:
    """And little more of it is sent: at most the call that was about to go."""
    link = FakeLink()
    admission = _admission(metrics, link)
    failing, other = _ask(admission, 320), _ask(admission, 3, 1000)
    _, end = await link.calls.get()
    end.set_exception(error)
    calls = [await link.answer(), await link.answer()]
    with pytest.raises(type(error)):
        await failing
    assert [1000, 1001, 1002] in calls
    assert await other == [1000, 1001, 1002]
    assert link.calls.empty()
    _assert_idle(admission, metrics)
