"""Admission: which Scorer gets a call, how large calls are, and who has a place in the queue."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any, cast

import pytest
from parts import FakeLink, ask, assert_idle, make_admission, played

from bento_service.admission import Admission, Bounds
from bento_service.call_turns import MAX_CALL_PAIRS
from bento_service.errors import QueueFull, ScorerDown, ScorerFailed
from bento_service.metrics import EntryMetrics
from bento_service.pairs import Outcome, PairScore


class ReadyLink(FakeLink):
    """A Scorer that answers at once and remembers the sizes of its calls."""

    def __init__(self, batch_pairs: int = 32) -> None:
        super().__init__(batch_pairs)
        self.sizes: list[int] = []

    async def score(self, blobs: list[bytes]) -> list[PairScore]:
        """Score a pair by its number."""
        self.sizes.append(len(blobs))
        return [PairScore(float(int(blob)), Outcome.SCORED) for blob in blobs]


def _as_made(metrics: EntryMetrics, *links: FakeLink) -> Admission:
    """Make an admission whose start is the random one."""
    return Admission(cast("Any", links), entry_workers=1, bounds=Bounds(pairs=10_000), metrics=metrics)


@played
async def test_requests_one_after_another_use_every_scorer_alike(entry_metrics: EntryMetrics) -> None:
    """Nothing is ever under way when the next one comes, so the pairs sent so far decide."""
    links = [ReadyLink() for _ in range(3)]
    admission = make_admission(entry_metrics, *links)
    for _ in range(12):
        await ask(admission, 5)
    assert [link.sizes for link in links] == [[5] * 4] * 3
    assert_idle(admission, entry_metrics)


@played
async def test_the_random_start_is_made_up_for(entry_metrics: EntryMetrics) -> None:
    """It shifts the shares by less than a call."""
    links = [ReadyLink() for _ in range(3)]
    admission = _as_made(entry_metrics, *links)
    for _ in range(300):
        await ask(admission, 1)
    sent = [sum(link.sizes) for link in links]
    assert sum(sent) == 300
    assert max(sent) - min(sent) <= MAX_CALL_PAIRS


@played
async def test_entry_workers_do_not_all_begin_with_the_same_scorer(entry_metrics: EntryMetrics) -> None:
    """They do not know of each other: each Scorer is the first of some."""
    firsts = set()
    for _ in range(200):
        links = [ReadyLink() for _ in range(4)]
        await ask(_as_made(entry_metrics, *links), 1)
        firsts.add(next(number for number, link in enumerate(links) if link.sizes))
    assert firsts == {0, 1, 2, 3}


@pytest.mark.parametrize("batch_pairs", [[4], [4, 32], [1000, 4, 5]], ids=str)
@played
async def test_the_slowest_scorer_sets_the_size_of_calls(entry_metrics: EntryMetrics, batch_pairs: list[int]) -> None:
    """A call must fit the batches of whichever Scorer it meets."""
    links = [ReadyLink(each) for each in batch_pairs]
    admission = make_admission(entry_metrics, *links)
    assert await ask(admission, 10) == list(range(10))
    assert sorted(size for link in links for size in link.sizes) == [2, 4, 4]
    assert_idle(admission, entry_metrics)


@pytest.mark.parametrize(("batch_pairs", "sizes"), [(0, [1] * 3), (1, [1] * 3), (2, [2, 1]), (3, [3]), (1000, [3])])
@played
async def test_a_call_holds_at_least_one_pair(entry_metrics: EntryMetrics, batch_pairs: int, sizes: list[int]) -> None:
    """However slow the model is."""
    link = ReadyLink(batch_pairs)
    assert await ask(make_admission(entry_metrics, link), 3) == [0, 1, 2]
    assert link.sizes == sizes


@pytest.mark.parametrize(
    ("batch_pairs", "workers", "pairs", "sizes"),
    [
        (64, 1, 100, [24, 24, 24, 24, 4]),  # two to a share of 48
        (64, 1, 33, [24, 9]),
        (64, 1, 32, [32]),
        (43, 1, 100, [32, 32, 32, 4]),
        (128, 1, 100, [32, 32, 32, 4]),
        (128, 2, 100, [24, 24, 24, 24, 4]),
        (128, 4, 100, [32, 32, 32, 4]),
        (1000, 1, 100, [31, 31, 31, 7]),
    ],
)
@played
async def test_calls_are_of_a_size_that_fills_a_share_of_a_batch(
    entry_metrics: EntryMetrics, batch_pairs: int, workers: int, pairs: int, sizes: list[int]
) -> None:
    """But a request that fits into a call is not cut."""
    link = ReadyLink(batch_pairs)
    assert await ask(make_admission(entry_metrics, link, workers=workers), pairs) == list(range(pairs))
    assert link.sizes == sizes


@played
async def test_a_slow_scorer_that_is_down_makes_no_calls_small(entry_metrics: EntryMetrics) -> None:
    """Its speed is that of another day."""
    slow, fast = ReadyLink(batch_pairs=4), ReadyLink(batch_pairs=1366)
    slow.up = False
    assert await ask(make_admission(entry_metrics, slow, fast), 40) == list(range(40))
    assert fast.sizes == [32, 8]


@played
async def test_a_place_is_held_until_its_holder_is_done(entry_metrics: EntryMetrics) -> None:
    """Others get what is left, and all of it afterwards."""
    admission = make_admission(entry_metrics, FakeLink(), most=100)
    with admission.place_for(60):
        with pytest.raises(QueueFull), admission.place_for(41):
            pass
        with admission.place_for(40):
            assert admission.queued_pairs == 100
            with pytest.raises(QueueFull), admission.place_for(1):
                pass
        assert admission.queued_pairs == 60
    with admission.place_for(100):
        assert admission.queued_pairs == 100
    assert_idle(admission, entry_metrics)


@pytest.mark.parametrize("error", [ValueError(), asyncio.CancelledError(), ScorerFailed("broken")], ids=repr)
@played
async def test_a_place_is_given_back_whatever_its_holder_dies_of(entry_metrics: EntryMetrics, error: BaseException) -> None:
    """A leak would fill the queue for good."""
    admission = make_admission(entry_metrics, FakeLink(), most=100)
    with contextlib.suppress(type(error)), admission.place_for(60):
        raise error
    assert_idle(admission, entry_metrics)


@played
async def test_without_a_scorer_there_is_no_place(entry_metrics: EntryMetrics) -> None:
    """Tokenising for nobody would be waste; a place that was held before is no help either."""
    link = FakeLink()
    admission = make_admission(entry_metrics, link)
    with admission.place_for(1):
        link.up = False
        with pytest.raises(ScorerDown), admission.place_for(1):
            pass
        with pytest.raises(ScorerDown):
            await admission.score([b"0"], deadline=time.monotonic() + 60)
    assert_idle(admission, entry_metrics)


@played
async def test_scoring_takes_no_place_of_its_own(entry_metrics: EntryMetrics) -> None:
    """Its caller has one for all pairs of the request."""
    link = FakeLink()
    admission = make_admission(entry_metrics, link, most=5)
    with admission.place_for(20):
        blobs = [str(number).encode() for number in range(20)]
        asked = asyncio.create_task(admission.score(blobs, deadline=time.monotonic() + 60))
        assert len(await link.answer()) == 20
        assert admission.queued_pairs == 20
        await asked
    assert_idle(admission, entry_metrics)


@played
async def test_a_scorer_that_comes_back_does_not_get_all_that_it_missed(entry_metrics: EntryMetrics) -> None:
    """After a long absence it gets at most a call more than the other, not every request until it has caught up."""
    away, steady = ReadyLink(), ReadyLink()
    admission = make_admission(entry_metrics, away, steady)
    away.up = False
    admission.wake()
    for _ in range(50):
        await ask(admission, 10)
    away.up = True
    admission.wake()
    before = sum(steady.sizes)
    for _ in range(20):
        await ask(admission, 10)
    assert sum(away.sizes) - (sum(steady.sizes) - before) <= MAX_CALL_PAIRS + 10
