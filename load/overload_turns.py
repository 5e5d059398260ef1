"""Three times the load that a server bears, in turns with its peak: a machine that others use has no speed that lasts for minutes."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from bounds import Result
from cores import Meter
from loops import percentile
from memory import Memory, Points, growth
from servers import Server
from visitors import OK, TOO_MANY, Body, Crowd, Visit, answered, goodput, latency, new_bodies

QUEUE_TIMEOUT_SECONDS = 2.0
DOCUMENTS, CLIENTS = 10, 16
KNOWN_REQUESTS, KNOWN_PER_SECOND = 20, 5
OVERLOAD = 3.0
SETTLE_SECONDS = 2.0
MOST_GROWTH = 0.03
LEAST_GOODPUT, MOST_SLOWER = 0.9, 1.2
WARM_SECONDS = 10.0  # in which memory may grow: buffers fill


@dataclass
class Turn:
    """One overload, and one client and many alone before it and after it. Speeds in pairs/s, of what was answered with 200."""

    lone_before: list[Visit]
    peak_before: float
    offered_requests_per_second: float
    visits: list[Visit]
    known: list[Visit]
    goodput: float
    server_cores: float
    other_cores: float
    memory: Memory
    lone_after: list[Visit]
    peak_after: float

    @property
    def told(self) -> dict[str, Any]:
        """The figures of this turn."""
        refused = [visit for visit in self.visits if visit.status == TOO_MANY]
        return {
            "unloaded_p99_seconds": latency(self.lone_before, 0.99),
            "peak_pairs_per_second": self.peak_before,
            "offered_requests_per_second": self.offered_requests_per_second,
            "statuses": Counter(visit.status for visit in self.visits),
            "codes": Counter(visit.code for visit in refused),
            "goodput_pairs_per_second": self.goodput,
            "admitted_p50_seconds": latency(self.visits, 0.5),
            "admitted_p99_seconds": latency(self.visits, 0.99),
            "known_p99_seconds": latency(self.known, 0.99),
            "refused_p99_seconds": percentile([visit.seconds for visit in refused], 0.99),
            "retry_after": Counter(visit.retry_after for visit in refused),
            "again_p99_seconds": latency(self.lone_after, 0.99),
            "again_pairs_per_second": self.peak_after,
            "server_cores": self.server_cores,
            "other_cores": self.other_cores,
            "resident_bytes": self.memory.samples,
            "visits": [[round(visit.due, 3), visit.status, round(visit.seconds, 4)] for visit in self.visits],
        }


async def overload(server: Server, result: Result, plan: argparse.Namespace) -> None:
    """Offer three times the peak, some times."""
    seeds = itertools.count(1)
    draw_known = new_bodies(next(seeds), DOCUMENTS)
    known = [draw_known() for _ in range(KNOWN_REQUESTS)]
    turns = [await _turn(server, known, plan.seconds, seeds) for _ in range(plan.turns)]
    result.raw["overload"] = {"turns": [turn.told for turn in turns]}
    lone = latency(chain.from_iterable(turn.lone_before for turn in turns), 0.99)
    _judge_answers(result, turns, QUEUE_TIMEOUT_SECONDS + 2 * lone)
    good, around = sum(turn.goodput for turn in turns), sum((turn.peak_before + turn.peak_after) / 2 for turn in turns)
    each = ", ".join(f"{turn.goodput:.0f} between {turn.peak_before:.0f} and {turn.peak_after:.0f}" for turn in turns)
    result.check(
        "goodput >= 0.9 of the peak (of those before and after, the mean), all overloads together",
        f"{each} pairs/s: {good / around:.3f}",
        kept=good >= LEAST_GOODPUT * around,
    )
    growths = _growths(turns, plan.seconds)
    result.check(
        f"memory flat: each process grows < 3 % in each overload after {WARM_SECONDS:g} s, and from the second one's begin to the last one's end",
        "; ".join(f"{name} {', '.join(f'{100 * (each or 0):+.1f}' for each in found)} %" for name, found in growths.items()),
        kept=not any(turn.memory.gone for turn in turns)
        and all(each is not None and each < MOST_GROWTH for found in growths.values() for each in found),
    )
    lone_again = latency(chain.from_iterable(turn.lone_after for turn in turns), 0.99)
    best, again = sum(turn.peak_before for turn in turns), sum(turn.peak_after for turn in turns)
    result.check(
        f"full speed again within {SETTLE_SECONDS:g} s of its end (p99 of one client <= 1.2 x before, peak >= 0.9), all overloads together",
        f"p99 {1000 * lone_again:.0f} ms for {1000 * lone:.0f}, {again / len(turns):.0f} for {best / len(turns):.0f} pairs/s",
        kept=lone_again <= MOST_SLOWER * lone and again >= LEAST_GOODPUT * best,
    )


async def alone(server: Server, seconds: float, seed: int) -> list[Visit]:
    """Let one client ask, one request after the other."""
    async with Crowd(server.url) as crowd:
        await crowd.closed_loop(new_bodies(seed, DOCUMENTS), clients=1, seconds=seconds)
        return crowd.visits


async def _peak(server: Server, seconds: float, seed: int) -> float:
    """Measure the pairs/s of many clients in a closed loop, after a warm-up."""
    async with Crowd(server.url) as crowd:
        await crowd.closed_loop(new_bodies(seed, DOCUMENTS), clients=CLIENTS, seconds=3 + seconds)
        return goodput(crowd.visits, 3, 3 + seconds)


async def _turn(server: Server, known: list[Body], seconds: float, seeds: Iterator[int]) -> Turn:
    """Overload it for so long. known: bodies that it shall know."""
    lone_before = await alone(server, seconds / 6, next(seeds))
    best = await _peak(server, seconds / 3, next(seeds))
    async with Crowd(server.url) as first:
        for body in known:
            await first.visit(body)
    rate = OVERLOAD * best / DOCUMENTS
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
    lone_after = await alone(server, seconds / 6, next(seeds))
    again = await _peak(server, seconds / 3, next(seeds))
    good = goodput(crowd.visits, min(5.0, seconds / 4), seconds)
    return Turn(lone_before, best, rate, crowd.visits, cached.visits, good, used, others, memory, lone_after, again)


def _growths(turns: list[Turn], seconds: float) -> dict[str, list[float | None]]:
    """How much each process grew in each overload, and from the second one's begin to the last one's end: under one load, without what is between."""
    found: dict[str, list[float | None]] = {}
    later: dict[str, Points] = {}
    for number, turn in enumerate(turns):
        for name, samples in turn.memory.samples.items():
            found.setdefault(name, []).append(growth(samples, WARM_SECONDS))
            if number:
                later.setdefault(name, []).extend((number * seconds + second, size) for second, size in samples)
    for name, samples in later.items():
        found[name].append(growth(samples, 0))
    return found


def _judge_answers(result: Result, turns: list[Turn], bound: float) -> None:
    p99s = [latency(turn.visits, 0.99) for turn in turns]
    visits = [visit for turn in turns for visit in turn.visits]
    known = [visit for turn in turns for visit in turn.known]
    statuses = Counter(visit.status for visit in visits)
    result.check(
        f"admitted p99 <= {QUEUE_TIMEOUT_SECONDS:g} s + 2 x unloaded p99 ({bound:.2f} s), each overload",
        ", ".join(f"{p99:.2f}" for p99 in p99s) + " s",
        kept=max(p99s) <= bound,
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
