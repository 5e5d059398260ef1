"""How fast pairs come back: measured while there is work."""

from __future__ import annotations

import pytest

from bento_service import pace as room
from bento_service.pace import Pace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Offer the time as a list of one number."""
    now = [1000.0]
    monkeypatch.setattr(room.time, "monotonic", lambda: now[0])
    return now


def test_it_is_what_came_back_over_the_time_there_was_work(clock: list[float]) -> None:
    """After half a second; before that it is unknown."""
    pace = Pace()
    pace.begin()
    clock[0] += 0.4
    pace.done(40)
    assert pace.pairs_per_second == 0
    clock[0] += 0.6
    pace.begin()
    pace.done(60)
    assert pace.pairs_per_second == pytest.approx(100)


def test_what_is_long_past_counts_less_and_less(clock: list[float]) -> None:
    """A Scorer that became four times as slow is known as such within seconds."""
    pace = Pace()
    pace.begin()
    for pairs in [100] * 20 + [25] * 20:
        clock[0] += 1
        pace.done(pairs)
    assert 25 <= pace.pairs_per_second < 30


def test_an_idle_time_ends_it(clock: list[float]) -> None:
    """Others may use the Scorers meanwhile."""
    pace = Pace()
    pace.begin()
    clock[0] += 1
    pace.done(100)
    pace.end()
    assert pace.pairs_per_second == 0
    clock[0] += 100
    pace.begin()
    clock[0] += 1
    pace.done(50)
    assert pace.pairs_per_second == pytest.approx(50)
