"""The circuit breaker: when it opens, whom it lets through, and how long it waits."""

from __future__ import annotations

import pytest
from cache_parts import Clock

from bento_service.cache import breaker as room
from bento_service.cache.breaker import Breaker, State

FAILURES, FIRST, LONGEST = 3, 0.5, 5.0
STEP = 1 / 64


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Let the test decide what time it is."""
    monkeypatch.setattr(room, "time", made := Clock())
    return made


@pytest.fixture
def changes() -> list[State]:
    """What the breaker told of."""
    return []


@pytest.fixture
def breaker(clock: Clock, changes: list[State]) -> Breaker:  # noqa: ARG001  the clock must be there first
    """Make one as it begins."""
    return Breaker(failures=FAILURES, first_pause_seconds=FIRST, longest_pause_seconds=LONGEST, on_change=changes.append)


def close(breaker: Breaker) -> None:
    """Let a probe work, as soon as one is due."""
    assert breaker.probe_due()
    breaker.worked()
    assert breaker.closed


def open_again(breaker: Breaker) -> None:
    """Fail as often as it takes."""
    for _ in range(FAILURES):
        assert breaker.closed
        breaker.failed()
    assert breaker.state is State.OPEN


def pause(breaker: Breaker, clock: Clock) -> float:
    """Measure the time to the next probe, which is then under way, in steps that add up exactly."""
    begun = clock.now
    while not breaker.probe_due():
        clock.now += STEP
        assert clock.now - begun < 100
    return clock.now - begun


def test_it_begins_open_and_a_probe_decides(breaker: Breaker, changes: list[State]) -> None:
    """Nobody waits for a peer that nobody has heard of; the first probe is due at once."""
    assert (breaker.state, breaker.closed) == (State.OPEN, False)
    close(breaker)
    assert changes == [State.HALF_OPEN, State.CLOSED]


def test_failures_in_a_row_open_it(breaker: Breaker, changes: list[State]) -> None:
    """The last of them, and none before."""
    close(breaker)
    for _ in range(FAILURES - 1):
        breaker.failed()
        assert breaker.closed
    breaker.failed()
    assert (breaker.state, breaker.closed) == (State.OPEN, False)
    assert changes == [State.HALF_OPEN, State.CLOSED, State.OPEN]


def test_a_success_in_between_begins_the_count_anew(breaker: Breaker) -> None:
    """A peer that answers now and then is there."""
    close(breaker)
    for _ in range(10):
        for _ in range(FAILURES - 1):
            breaker.failed()
        breaker.worked()
    assert breaker.closed
    open_again(breaker)


def test_failures_before_it_closed_do_not_count(breaker: Breaker, clock: Clock) -> None:
    """Neither those that opened it, nor a late one while it was open, nor a probe's."""
    close(breaker)
    open_again(breaker)
    breaker.failed()
    breaker.failed()
    pause(breaker, clock)
    breaker.failed()
    pause(breaker, clock)
    breaker.worked()
    open_again(breaker)


def test_one_probe_is_let_through(breaker: Breaker, clock: Clock) -> None:
    """Until it has been answered there is no other, and no call."""
    close(breaker)
    assert not breaker.probe_due()
    open_again(breaker)
    assert not breaker.probe_due()
    pause(breaker, clock)
    assert (breaker.state, breaker.closed) == (State.HALF_OPEN, False)
    clock.now += 1000
    assert not breaker.probe_due()
    breaker.worked()
    assert breaker.closed


def test_each_failed_probe_doubles_the_pause_up_to_the_longest(breaker: Breaker, clock: Clock) -> None:
    """From the end of the probe on; the first pause is a short one."""
    close(breaker)
    clock.now += 1000
    open_again(breaker)
    pauses = []
    for _ in range(6):
        pauses.append(pause(breaker, clock))
        clock.now += 0.25
        breaker.failed()
        assert breaker.state is State.OPEN
    assert pauses == [FIRST, 1.0, 2.0, 4.0, LONGEST, LONGEST]


def test_one_that_never_answered_is_probed_ever_less(breaker: Breaker, clock: Clock) -> None:
    """As at a start without it."""
    pauses = []
    for _ in range(6):
        pauses.append(pause(breaker, clock))
        breaker.failed()
    assert pauses == [0, 1.0, 2.0, 4.0, LONGEST, LONGEST]


def test_one_that_fails_again_soon_after_a_probe_is_left_alone_for_longer(breaker: Breaker, clock: Clock) -> None:
    """It answers probes but no calls; soon is within twice the longest pause."""
    close(breaker)
    pauses = []
    for wait in (2 * LONGEST, 0, 1, 2 * LONGEST - STEP, 2 * LONGEST - STEP, 2 * LONGEST, 0):
        clock.now += wait
        open_again(breaker)
        pauses.append(pause(breaker, clock))
        breaker.worked()
    assert pauses == [FIRST, 1.0, 2.0, 4.0, LONGEST, FIRST, 1.0]


def test_a_late_answer_does_not_close_what_is_open(breaker: Breaker, clock: Clock, changes: list[State]) -> None:
    """A probe decides, as it would without the answer."""
    close(breaker)
    open_again(breaker)
    breaker.worked()
    assert breaker.state is State.OPEN
    assert pause(breaker, clock) > 0
    assert changes[3:] == [State.HALF_OPEN]


def test_a_late_failure_does_not_lengthen_the_pause(breaker: Breaker, clock: Clock, changes: list[State]) -> None:
    """Calls that went out before it opened come back after; nobody is told twice."""
    close(breaker)
    clock.now += 1000
    open_again(breaker)
    for _ in range(20):
        breaker.failed()
    assert pause(breaker, clock) == FIRST
    assert changes[2:] == [State.OPEN, State.HALF_OPEN]


def test_every_change_is_told_once_after_it_has_happened(clock: Clock) -> None:
    """Who is told can ask for the state."""
    seen: list[tuple[State, State]] = []
    breaker = Breaker(
        failures=1,
        first_pause_seconds=FIRST,
        longest_pause_seconds=LONGEST,
        on_change=lambda state: seen.append((state, breaker.state)),
    )
    close(breaker)
    breaker.worked()
    breaker.failed()
    pause(breaker, clock)
    breaker.failed()
    told = [State.HALF_OPEN, State.CLOSED, State.OPEN, State.HALF_OPEN, State.OPEN]
    assert seen == [(state, state) for state in told]


def test_nobody_has_to_be_told() -> None:
    """The real clock will do as well."""
    breaker = Breaker(failures=1, first_pause_seconds=FIRST, longest_pause_seconds=LONGEST)
    close(breaker)
    breaker.failed()
    assert (breaker.closed, breaker.probe_due()) == (False, False)
