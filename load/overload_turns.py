"""Three times the load that a server bears, in turns with its peak: a machine that others use has no speed that lasts for minutes."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bounds import Result
from cores import Meter
from loops import percentile
from memory import Memory, growth
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


async def peak(server: Server, seconds: float, seed: int) -> float:
    """Measure the pairs/s of many clients in a closed loop, after a warm-up."""
    async with Crowd(server.url) as crowd:
        await crowd.closed_loop(new_bodies(seed, DOCUMENTS), clients=CLIENTS, seconds=3 + seconds)
        return goodput(crowd.visits, 3, 3 + seconds)


async def unloaded(server: Server, seconds: float, seed: int) -> float:
    """Measure the p99 of one client, in seconds."""
    async with Crowd(server.url) as crowd:
        await crowd.closed_loop(new_bodies(seed, DOCUMENTS), clients=1, seconds=seconds)
        return latency(crowd.visits, 0.99)


@dataclass
class Turn:
    """One overload between two peaks. Speeds in pairs/s, of those answered with 200."""

    before: float
    offered_requests_per_second: float
    visits: list[Visit]
    known: list[Visit]
    goodput: float
    server_cores: float
    other_cores: float
    again_p99_seconds: float
    again: float

    @property
    def told(self) -> dict[str, Any]:
        """The figures of this turn."""
        refused = [visit for visit in self.visits if visit.status == TOO_MANY]
        return {
            "peak_pairs_per_second": self.before,
            "offered_requests_per_second": self.offered_requests_per_second,
            "statuses": Counter(visit.status for visit in self.visits),
            "codes": Counter(visit.code for visit in refused),
            "goodput_pairs_per_second": self.goodput,
            "admitted_p50_seconds": latency(self.visits, 0.5),
            "admitted_p99_seconds": latency(self.visits, 0.99),
            "known_p99_seconds": latency(self.known, 0.99),
            "refused_p99_seconds": percentile([visit.seconds for visit in refused], 0.99),
            "retry_after": Counter(visit.retry_after for visit in refused),
            "again_p99_seconds": self.again_p99_seconds,
            "again_pairs_per_second": self.again,
            "server_cores": self.server_cores,
            "other_cores": self.other_cores,
            "visits": [[round(visit.due, 3), visit.status, round(visit.seconds, 4)] for visit in self.visits],
        }


async def overload(server: Server, result: Result, plan: argparse.Namespace) -> None:
    """Offer three times the peak, some times, each between two peaks."""
    seeds = itertools.count(1)
    alone_p99 = await unloaded(server, plan.seconds / 3, next(seeds))
    best = await peak(server, plan.seconds / 2, next(seeds))
    draw_known = new_bodies(next(seeds), DOCUMENTS)
    known = [draw_known() for _ in range(KNOWN_REQUESTS)]
    turns: list[Turn] = []
    with Memory(server, 1.0) as memory:
        for _ in range(plan.turns):
            turns.append(await _turn(server, turns[-1].again if turns else best, known, plan, seeds))
    result.raw["overload"] = {
        "unloaded_p99_seconds": alone_p99,
        "turns": [turn.told for turn in turns],
        "resident_bytes": memory.samples,
    }
    for turn in turns:
        _judge_answers(result, turn.visits, turn.known, QUEUE_TIMEOUT_SECONDS + 2 * alone_p99)
    good, around = sum(turn.goodput for turn in turns), sum((turn.before + turn.again) / 2 for turn in turns)
    each = ", ".join(f"{turn.goodput:.0f} between {turn.before:.0f} and {turn.again:.0f}" for turn in turns)
    result.check(
        "goodput >= 0.9 of the peak (of those before and after, the mean)",
        f"{each} pairs/s: {good / around:.2f}",
        kept=good >= LEAST_GOODPUT * around,
    )
    growths = {name: growth(points, WARM_SECONDS) for name, points in memory.samples.items()}
    result.check(
        f"memory flat: each process grows < 3 % after {WARM_SECONDS:g} s",
        ", ".join(f"{name} {100 * each:+.1f} %" for name, each in growths.items() if each is not None),
        kept=not memory.gone and all(each is not None and each < MOST_GROWTH for each in growths.values()),
    )
    result.check(
        f"full speed again within {SETTLE_SECONDS:g} s of its end (p99 of one client <= 1.2 x before, peak >= 0.9)",
        ", ".join(
            f"p99 {1000 * turn.again_p99_seconds:.0f} ms for {1000 * alone_p99:.0f}, {turn.again:.0f} for {turn.before:.0f} pairs/s"
            for turn in turns
        ),
        kept=all(
            turn.again_p99_seconds <= MOST_SLOWER * alone_p99 and turn.again >= LEAST_GOODPUT * turn.before for turn in turns
        ),
    )


async def _turn(server: Server, best: float, known: list[Body], plan: argparse.Namespace, seeds: Iterator[int]) -> Turn:
    """Overload it after a peak of `best` pairs/s, and see how it is afterwards. known: bodies that it shall know."""
    async with Crowd(server.url) as first:
        for body in known:
            await first.visit(body)
    rate = OVERLOAD * best / DOCUMENTS
    async with Crowd(server.url) as crowd, Crowd(server.url) as cached:
        make = new_bodies(next(seeds), DOCUMENTS)
        made = iter([make() for _ in range(round(rate * plan.seconds))])  # beforehand: the server needs the cores
        crowd.begin = cached.begin = time.monotonic()
        known_bodies, meter = itertools.cycle(known), Meter([server.process.pid])
        await asyncio.gather(
            crowd.open_loop(lambda: next(made), requests_per_second=rate, seconds=plan.seconds, seed=next(seeds)),
            cached.open_loop(
                lambda: next(known_bodies), requests_per_second=KNOWN_PER_SECOND, seconds=plan.seconds, seed=next(seeds)
            ),
        )
        used, others = meter.read()
    await asyncio.sleep(max(0.0, plan.seconds + SETTLE_SECONDS - crowd.age))
    again_p99 = await unloaded(server, plan.seconds / 6, next(seeds))
    again = await peak(server, plan.seconds / 2, next(seeds))
    good = goodput(crowd.visits, min(5.0, plan.seconds / 4), plan.seconds)
    return Turn(best, rate, crowd.visits, cached.visits, good, used, others, again_p99, again)


def _judge_answers(result: Result, visits: list[Visit], known: list[Visit], bound: float) -> None:
    p99, statuses = latency(visits, 0.99), Counter(visit.status for visit in visits)
    result.check(
        f"admitted p99 <= {QUEUE_TIMEOUT_SECONDS:g} s + 2 x unloaded p99 ({bound:.2f} s)", f"{p99:.2f} s", kept=p99 <= bound
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
