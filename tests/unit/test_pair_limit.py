"""The queue's limit in pairs: fixed, or following the measured latency."""

from __future__ import annotations

import pytest
from parts import FakeLink, ask, assert_idle, make_admission, played

from bento_service import pair_limit
from bento_service.errors import QueueFull
from bento_service.metrics import EntryMetrics
from bento_service.pair_limit import LEAST_PAIRS, PairLimit


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Offer the time as a list of one number."""
    now = [1000.0]
    monkeypatch.setattr(pair_limit.time, "monotonic", lambda: now[0])
    return now


def test_without_a_target_it_stays() -> None:
    """However slow it gets."""
    limit = PairLimit(500)
    limit.observe(1e6, queued_pairs=500, pairs=32)
    assert limit.pairs == 500


def test_one_late_answer_brings_it_to_what_was_in_the_queue(clock: list[float]) -> None:
    """Not a tenth off a limit that nobody reached; once for all that are late with it, and never below one call."""
    limit = PairLimit(20_000, target_seconds=1)
    limit.observe(2, queued_pairs=1000, pairs=32)
    assert limit.pairs == 900
    limit.observe(2, queued_pairs=1000, pairs=32)
    assert limit.pairs == 900
    for _ in range(100):
        clock[0] += 2.1
        limit.observe(2, queued_pairs=1000, pairs=32)
    assert limit.pairs == LEAST_PAIRS


def test_answers_in_time_let_it_grow_where_it_is_used(clock: list[float]) -> None:
    """By a tenth, or a call of 32, for each limit's worth of pairs, up to the fixed limit; an idle queue teaches nothing."""
    limit = PairLimit(1000, target_seconds=1)
    limit.observe(2, queued_pairs=400, pairs=32)
    clock[0] += 10
    for _ in range(100):
        limit.observe(0.5, queued_pairs=10, pairs=32)
    assert limit.pairs == 360
    for _ in range(36):
        limit.observe(0.5, queued_pairs=350, pairs=10)
    assert 390 <= limit.pairs <= 400
    for _ in range(10_000):
        limit.observe(0.5, queued_pairs=1000, pairs=32)
    assert limit.pairs == 1000


def test_a_late_answer_of_a_queue_that_held_little_teaches_nothing(clock: list[float]) -> None:
    """Something else made it late."""
    limit = PairLimit(1000, target_seconds=1)
    clock[0] += 10
    limit.observe(9, queued_pairs=LEAST_PAIRS, pairs=1)
    assert limit.pairs == 1000


@played
async def test_a_queue_that_got_too_slow_takes_fewer_pairs(entry_metrics: EntryMetrics, clock: list[float]) -> None:
    """A request that nothing stands before is taken all the same."""
    link = FakeLink()
    admission = make_admission(entry_metrics, link, target_seconds=1)
    asked = [ask(admission, 32), ask(admission, 32, 100)]
    call = await link.calls.get()
    clock[0] += 3
    link.calls.put_nowait(call)
    for _ in asked:
        await link.answer()
    for each in asked:
        await each
    assert admission.limit_pairs < 64
    assert entry_metrics.queue_limit_pairs._value.get() == admission.limit_pairs
    big = ask(admission, 64)
    call = await link.calls.get()
    with pytest.raises(QueueFull):
        await ask(admission, 1)
    link.calls.put_nowait(call)
    await link.answer()
    await link.answer()
    await big
    assert_idle(admission, entry_metrics)
