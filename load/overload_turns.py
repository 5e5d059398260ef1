"""Three times the load that a server bears, in turns with its peak: a machine that others use has no speed that lasts for minutes."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from bounds import MOST_SLOWER, Result
from cores import Meter
from loops import percentile
from memory import Memory, Points, growth, named_processes
from servers import Server
from visitors import DOCUMENTS, OK, TOO_MANY, Body, Crowd, Visit, alone, answered, goodput, latency, new_bodies

QUEUE_TIMEOUT_SECONDS = 2.0
CLIENTS = 16
KNOWN_REQUESTS, KNOWN_PER_SECOND = 20, 5
OVERLOAD = 3.0
SETTLE_SECONDS, SLACK_SECONDS = 2.0, 0.5
MOST_GROWTH = 0.03
# Of all overloads together, and of each: of one alone the machine's own changes make a tenth (ADR 12).
LEAST_GOODPUT, LEAST_OF_ONE = 0.9, 0.75
WARM_SECONDS = 10.0  # in which memory may grow: buffers fill


@dataclass
class Speed:
    """How fast a server is: the answers to one client alone, and pairs/s of many."""

    lone: list[Visit]
    peak: float

    @property
    def told(self) -> dict[str, Any]:
        """Its figures."""
        return {
            "lone_p99_seconds": latency(self.lone, 0.99),
            "peak_pairs_per_second": self.peak,
            "lone_visits": _rows(self.lone),
        }


@dataclass
class Turn:
    """One overload and the speed after it. goodput: pairs/s answered with 200 · settled_seconds: from its end until that speed was measured."""

    offered_requests_per_second: float
    visits: list[Visit]
    known: list[Visit]
    goodput: float
    after: Speed
    settled_seconds: float = SETTLE_SECONDS
    server_cores: float = 0.0
    other_cores: float = 0.0
    memory: dict[str, Points] = field(default_factory=dict)

    @property
    def told(self) -> dict[str, Any]:
        """Its figures."""
        refused = [visit for visit in self.visits if visit.status == TOO_MANY]
        return {
            "offered_requests_per_second": self.offered_requests_per_second,
            "statuses": Counter(visit.status for visit in self.visits),
            "codes": Counter(visit.code for visit in refused),
            "goodput_pairs_per_second": self.goodput,
            "admitted_p50_seconds": latency(self.visits, 0.5),
            "admitted_p99_seconds": latency(self.visits, 0.99),
            "known_p99_seconds": latency(self.known, 0.99),
            "refused_p99_seconds": percentile([visit.seconds for visit in refused], 0.99),
            "retry_after": Counter(visit.retry_after for visit in refused),
            "server_cores": self.server_cores,
            "other_cores": self.other_cores,
            "settled_seconds": self.settled_seconds,
            "after": self.after.told,
            "resident_bytes": self.memory,
            "visits": _rows(self.visits),
        }


async def overload(server: Server, result: Result, plan: argparse.Namespace) -> None:
    """Offer three times the peak, some times, and judge what came of it."""
    seeds = itertools.count(1)
    draw_known = new_bodies(next(seeds), DOCUMENTS)
    known = [draw_known() for _ in range(KNOWN_REQUESTS)]
    processes = {name: process.pid for name, process in named_processes(server).items()}
    fresh = await _speed(server, plan.seconds / 2, plan.seconds / 2, seeds)
    turns: list[Turn] = []
    for _ in range(plan.turns):
        greatest = max(fresh.peak, *(turn.after.peak for turn in turns), 0.0)
        turns.append(await _turn(server, OVERLOAD * greatest / DOCUMENTS, known, plan.seconds, seeds))
    judge(result, fresh, turns, plan.seconds)
    result.check(
        "no process has ended",
        ", ".join(processes),
        kept={name: process.pid for name, process in named_processes(server).items()} == processes,
    )


async def _speed(server: Server, lone_seconds: float, peak_seconds: float, seeds: Iterator[int]) -> Speed:
    """Measure one client alone, then many in a closed loop after a warm-up."""
    lone = await alone(server.url, lone_seconds, next(seeds))
    async with Crowd(server.url) as crowd:
        await crowd.closed_loop(new_bodies(next(seeds), DOCUMENTS), clients=CLIENTS, seconds=3 + peak_seconds)
        return Speed(lone, goodput(crowd.visits, 3, 3 + peak_seconds))


async def _turn(server: Server, rate: float, known: list[Body], seconds: float, seeds: Iterator[int]) -> Turn:
    """Overload a server for so many seconds, beside it ask for what it knows, and measure its speed afterwards."""
    async with Crowd(server.url) as first:
        for body in known:
            await first.visit(body)
    async with Crowd(server.url) as crowd, Crowd(server.url) as cached:
        make = new_bodies(next(seeds), DOCUMENTS)
        made = iter([make() for _ in range(round(rate * seconds))])  # beforehand: the server needs the cores
        crowd.begin = cached.begin = time.monotonic()
        known_bodies, meter = itertools.cycle(known), Meter([server.process.pid])
        with Memory(server, 1.0) as memory:
            await asyncio.gather(
                crowd.open_loop(lambda: next(made), requests_per_second=rate, seconds=seconds, seed=next(seeds)),
                cached.open_loop(
                    lambda: next(known_bodies), requests_per_second=KNOWN_PER_SECOND, seconds=seconds, seed=next(seeds)
                ),
            )
        used, others = meter.read()
    await asyncio.sleep(max(0.0, seconds + SETTLE_SECONDS - crowd.age))
    settled = crowd.age - seconds
    after = await _speed(server, seconds / 4, seconds / 2, seeds)
    good = goodput(crowd.visits, min(5.0, seconds / 4), seconds)
    return Turn(rate, crowd.visits, cached.visits, good, after, settled, used, others, memory.samples)


def judge(result: Result, fresh: Speed, turns: Sequence[Turn], seconds: float) -> None:
    """Hold the overloads, each of so many seconds, against their bounds. fresh: before the first one."""
    lone = latency(fresh.lone, 0.99)
    _judge_answers(result, turns, QUEUE_TIMEOUT_SECONDS + 2 * lone)
    peaks = [fresh.peak, *(turn.after.peak for turn in turns)]
    around = [sum(pair) / 2 for pair in itertools.pairwise(peaks)]
    shares = [turn.goodput / peak for turn, peak in zip(turns, around, strict=True)]
    share = sum(turn.goodput for turn in turns) / sum(around)
    result.check(
        f"goodput >= {LEAST_GOODPUT:g} of the peak (of those before and after, the mean), all overloads together; of each >= {LEAST_OF_ONE:g}",
        f"{share:.3f}: {_listed([turn.goodput for turn in turns], '.0f')} pairs/s of {_listed(around, '.0f')}: {_listed(shares, '.2f')}",
        kept=share >= LEAST_GOODPUT and all(each >= LEAST_OF_ONE for each in shares),
    )
    growths = _judge_memory(result, turns, seconds)
    lone_again = latency(chain.from_iterable(turn.after.lone for turn in turns), 0.99)
    again = sum(peaks[1:]) / len(turns)
    result.check(
        f"full speed again {SETTLE_SECONDS:g} s after its end (p99 of one client <= {MOST_SLOWER:g} x that of the fresh server, peak >= {LEAST_GOODPUT:g}), all overloads together",
        f"p99 {1000 * lone_again:.0f} ms ({_listed([1000 * latency(turn.after.lone, 0.99) for turn in turns], '.0f')}) for {1000 * lone:.0f}, "
        f"{again:.0f} pairs/s ({_listed(peaks[1:], '.0f')}) for {fresh.peak:.0f}",
        kept=lone_again <= MOST_SLOWER * lone
        and again >= LEAST_GOODPUT * fresh.peak
        and all(turn.settled_seconds <= SETTLE_SECONDS + SLACK_SECONDS for turn in turns)
        and all(visit.status == OK for turn in turns for visit in turn.after.lone),
    )
    result.raw["overload"] = {
        "fresh": fresh.told,
        "turns": [turn.told for turn in turns],
        "goodput_share": share,
        "goodput_shares": shares,
        "offered_over_peak": [
            turn.offered_requests_per_second * DOCUMENTS / peak for turn, peak in zip(turns, around, strict=True)
        ],
        "lone_again_p99_seconds": lone_again,
        "growths": growths,
    }


def _judge_answers(result: Result, turns: Sequence[Turn], bound: float) -> None:
    p99s = [latency(turn.visits, 0.99) for turn in turns]
    visits = [visit for turn in turns for visit in turn.visits]
    known = [visit for turn in turns for visit in turn.known]
    statuses = Counter(visit.status for visit in visits)
    result.check(
        f"admitted p99 <= {QUEUE_TIMEOUT_SECONDS:g} s + 2 x unloaded p99 ({bound:.2f} s), each overload",
        f"{_listed(p99s, '.2f')} s",
        kept=all(p99 <= bound for p99 in p99s),
    )
    result.check(
        "the rest 429 with Retry-After, nothing else",
        ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items())),
        kept=set(statuses) <= {OK, TOO_MANY}
        and all(visit.retry_after and int(visit.retry_after) >= 1 for visit in visits if visit.status == TOO_MANY),
    )
    result.check(
        "wholly cached requests all answered",
        f"{len(answered(known))} of {len(known)}, p99 {1000 * latency(known, 0.99):.0f} ms",
        kept=all(visit.status == OK and visit.hits == visit.pairs for visit in known),
    )


def _judge_memory(result: Result, turns: Sequence[Turn], seconds: float) -> dict[str, list[float | None]]:
    """Look at each process under overload alone: in the first one, from the second one's begin on, and over all."""
    growths: dict[str, list[float | None]] = {}
    for name in {name: None for turn in turns for name in turn.memory}:
        first = turns[0].memory.get(name, [])
        later = [
            (number * seconds + second, size)
            for number, turn in enumerate(turns[1:], start=1)
            for second, size in turn.memory.get(name, [])
        ]
        growths[name] = [growth(first, WARM_SECONDS), growth(later, 0) if later else 0.0, growth([*first, *later], WARM_SECONDS)]
    text = {
        name: _listed([100 * each if each is not None else float("nan") for each in found], "+.1f")
        for name, found in growths.items()
    }
    result.check(
        f"memory flat: each process grows < {100 * MOST_GROWTH:g} % in the first overload after {WARM_SECONDS:g} s, and from the second one's begin to the last one's end (third figure: over all)",
        "; ".join(f"{name} {found} %" for name, found in text.items()),
        kept=bool(growths) and all(each is not None and each < MOST_GROWTH for found in growths.values() for each in found[:2]),
    )
    return growths


def _listed(values: Sequence[float], form: str) -> str:
    return ", ".join(format(value, form) for value in values)


def _rows(visits: Sequence[Visit]) -> list[list[float]]:
    return [[round(visit.due, 3), visit.status, round(visit.seconds, 4)] for visit in visits]
