"""The bounds of an overload, held against visits that were made up."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from bounds import Result
from memory import Points
from overload_turns import Speed, Turn, judge
from visitors import OK, TOO_MANY, Visit

SECONDS = 60.0


def visit(seconds: float, status: int = OK, *, hits: int = 0, retry_after: str | None = None) -> Visit:
    """Make an answer to a small request."""
    return Visit(0.0, 10, status, seconds, hits, retry_after)


def speed(peak: float = 150, p99: float = 0.1, status: int = OK) -> Speed:
    """Make a speed."""
    return Speed([visit(p99, status)] * 100, peak)


def memory(*sizes: float) -> Points:
    """Make samples over one overload, in equal steps."""
    return [(SECONDS * number / 60, round(1e6 * sizes[number * len(sizes) // 61])) for number in range(61)]


def turn(
    *,
    goodput: float = 145,
    after: Speed | None = None,
    refused: Visit | None = None,
    admitted: float = 2.1,
    known: Visit | None = None,
    settled: float = 2.0,
    sizes: tuple[float, ...] = (100,),
) -> Turn:
    """Make an overload that keeps all bounds, but for what is told."""
    return Turn(
        45,
        [visit(admitted), refused or visit(0.01, TOO_MANY, retry_after="1")],
        [known or visit(0.01, hits=10)],
        goodput,
        after or speed(),
        settled,
        memory={"entry-1": memory(*sizes)},
    )


def broken(*turns: Turn) -> list[str]:
    """Tell the bounds that these break, by the begin of their names."""
    result = Result()
    judge(result, speed(), turns, SECONDS)
    return [check.asked.partition(" ")[0] for check in result.checks if not check.kept]


def test_a_server_that_stays_up_keeps_all_bounds() -> None:
    """Over several overloads, one of which is worse, and over one."""
    assert broken(turn(), turn(goodput=120), turn(), turn()) == []
    assert broken(turn()) == []


@pytest.mark.parametrize(
    ("bad", "names"),
    [
        (lambda: turn(admitted=2.3), ["admitted"]),
        (lambda: turn(admitted=math.nan), ["admitted"]),
        (lambda: turn(refused=visit(0.01, TOO_MANY)), ["the"]),
        (lambda: turn(refused=visit(0.01, 503, retry_after="1")), ["the"]),
        (lambda: turn(known=visit(0.01, hits=9)), ["wholly"]),
        (lambda: turn(known=visit(0.01, TOO_MANY)), ["wholly"]),
        (lambda: turn(goodput=110), ["goodput"]),
        (lambda: turn(settled=3.0), ["full"]),
        (lambda: turn(after=speed(status=TOO_MANY)), ["full"]),
        (lambda: turn(after=speed(p99=0.3)), ["full"]),
        (lambda: turn(sizes=(100, 101, 102, 104)), ["memory"]),
    ],
)
def test_one_bad_overload_breaks_its_bound(bad: Callable[[], Turn], names: list[str]) -> None:
    """Though the others are good, before it or behind it."""
    assert broken(bad(), turn(), turn()) == names
    assert broken(turn(), turn(), bad()) == names


def test_goodput_is_held_against_the_peaks_around_it() -> None:
    """All overloads together: a machine that is slower for a while slows both."""
    assert broken(turn(goodput=134), turn(goodput=134)) == ["goodput"]
    assert broken(turn(goodput=110), turn(goodput=150), turn(goodput=150)) == ["goodput"]  # 0.91 together, but 0.73
    slow = speed(peak=140)
    assert broken(turn(goodput=134, after=slow), turn(goodput=128, after=slow)) == []


def test_damage_that_lasts_is_seen() -> None:
    """Each speed afterwards is held against the fresh server's, not against the last one's."""
    assert broken(*(turn(goodput=goodput, after=speed(peak)) for goodput, peak in ((140, 140), (133, 130), (123, 120)))) == [
        "full"
    ]
    assert broken(*[turn(after=speed(p99=0.13))] * 4) == ["full"]


def test_memory_that_creeps_over_the_overloads_is_seen() -> None:
    """By what it takes in the first one, and from the second one on: after minutes nothing is new."""
    assert broken(turn(sizes=(100,)), turn(sizes=(104,)), turn(sizes=(105,))) == []
    assert broken(*(turn(sizes=(100 + number,)) for number in range(0, 10, 2))) == ["memory"]


def test_a_process_without_samples_breaks_the_bound() -> None:
    """It has ended, or nobody looked."""
    without = turn()
    without.memory = {"entry-1": []}
    assert broken(without, without) == ["memory"]
    without.memory = {}
    assert broken(without) == ["memory"]
