"""SIGTERM to the server, SIGKILL and SIGSTOP to its model worker, each under load and again and again: `make resilience`.

Every round is checked by itself; a broken one fails the run, after the report is written.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests"), str(REPOSITORY / "load")]

import aiohttp  # noqa: E402  the path must be set first

from provenance import provenance, sentence  # noqa: E402
from report_options import REPORTS, command_line  # noqa: E402
from saving import save  # noqa: E402
from servers import Server  # noqa: E402
from tables import table  # noqa: E402
from visitors import FAILED, OK, Crowd, Visit, new_bodies  # noqa: E402

ROUNDS = 20
DRAIN_SECONDS, SHUTDOWN_SECONDS, SILENCE_SECONDS = 2.0, 15.0, 3.0
NOTICE_SECONDS = SILENCE_SECONDS + 2.5  # a heartbeat, its time-out and a look at it besides
CIRCUS_SECONDS = 10.0
READYZ_SECONDS = 1.0
DOCUMENTS, LOAD, LEAD_SECONDS, KNOWN_PER_SECOND = 10, 0.5, 1.5, 10
AFTER_SECONDS, ENDING_SECONDS = 1.0, 10.0  # of load after it is ready again, and until all that was sent must have ended
UNAVAILABLE, TOO_MANY = 503, 429
POLL_SECONDS = 0.02


class Watch:
    """Asks /readyz over and over. changes: (time.monotonic(), status), one for each change; 0 where nobody answers."""

    def __init__(self, server: Server) -> None:
        self._url = server.url + "/readyz"
        self.changes: list[tuple[float, int]] = []

    async def run(self) -> None:
        """Go on until it is cancelled."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
            while True:
                status = 0
                try:
                    async with session.get(self._url) as answer:
                        status = answer.status
                except (aiohttp.ClientError, OSError, TimeoutError):
                    pass
                if not self.changes or self.changes[-1][1] != status:
                    self.changes.append((time.monotonic(), status))
                await asyncio.sleep(POLL_SECONDS)

    async def until(self, status: int, since: float, patience_seconds: float) -> float:
        """Wait until it becomes so after `since`; the seconds that took, infinite where it did not."""
        end = time.monotonic() + patience_seconds
        while time.monotonic() < end:
            for at, seen in self.changes:
                if at >= since and seen == status:
                    return at - since
            await asyncio.sleep(POLL_SECONDS)
        return float("inf")


def misfits(visits: Iterable[Visit], allowed: set[int]) -> list[str]:
    """Tell of the visits that ended otherwise, or without Retry-After."""
    found = [f"{visit.status} {visit.code}" for visit in visits if visit.status not in allowed]
    return found + [
        f"{visit.status} without Retry-After"
        for visit in visits
        if visit.status in (UNAVAILABLE, TOO_MANY) and not visit.retry_after
    ]


async def rate_of(server: Server) -> float:
    """Measure the requests/s that keep the server half busy."""
    async with Crowd(server.url) as crowd:
        await crowd.closed_loop(new_bodies(1, DOCUMENTS), clients=8, seconds=4)
    return LOAD * len(crowd.visits) / 4


async def sigterm(home: Path, settings: dict[str, object], number: int) -> dict[str, Any]:
    """One round: a server under load is told to end."""
    begin = time.monotonic()
    server = Server(home, **settings)
    try:
        await asyncio.to_thread(server.wait_ready)
        start_seconds = time.monotonic() - begin
        rate = await rate_of(server)
        watch = Watch(server)
        async with Crowd(server.url) as crowd:
            watching = asyncio.create_task(watch.run())
            flow = crowd.open_loop(
                new_bodies(100 + number, DOCUMENTS),
                requests_per_second=rate,
                seconds=LEAD_SECONDS + DRAIN_SECONDS + 1,
                seed=number,
            )
            load = asyncio.create_task(flow)
            await asyncio.sleep(LEAD_SECONDS)
            server.process.send_signal(signal.SIGTERM)
            signalled = time.monotonic()
            off = await watch.until(UNAVAILABLE, signalled, 2)
            code = await asyncio.to_thread(server.wait_exit, SHUTDOWN_SECONDS + 5)
            seconds = time.monotonic() - signalled
            await load
            watching.cancel()
        over = signalled + DRAIN_SECONDS - crowd.begin
        taken = [visit for visit in crowd.started if visit.due < over]
        broken = misfits(taken, {OK, UNAVAILABLE})
        if code or seconds > SHUTDOWN_SECONDS or off > READYZ_SECONDS:
            broken.append(f"exit code {code} after {seconds:.1f} s, /readyz off after {off:.2f} s")
        statuses = Counter(visit.status for visit in taken)
        return {
            "start_seconds": start_seconds,
            "readyz_off_seconds": off,
            "exit_seconds": seconds,
            "exit_code": code,
            "taken": dict(statuses),
            "later": dict(Counter(visit.status for visit in crowd.visits if visit.due >= over)),
            "broken": broken,
        }
    finally:
        server.stop()


async def disturbed(server: Server, number: int, rate: float, *, kill: bool, start_seconds: float) -> dict[str, Any]:
    """One round: the model worker of a server under load is killed, or stopped and let go again."""
    watch, known = Watch(server), new_bodies(7, DOCUMENTS)()
    async with Crowd(server.url) as crowd, Crowd(server.url) as cached:
        await cached.visit(known)
        cached.visits.clear()
        watching = asyncio.create_task(watch.run())
        make = new_bodies(1000 + number, DOCUMENTS)
        loads = asyncio.gather(
            crowd.open_loop(make, requests_per_second=rate, seconds=600, seed=number),
            cached.open_loop(lambda: known, requests_per_second=KNOWN_PER_SECOND, seconds=600, seed=number),
        )
        await asyncio.sleep(LEAD_SECONDS)
        [scorer] = server.workers("Scorer")
        scorer.send_signal(signal.SIGKILL if kill else signal.SIGSTOP)
        hurt, hurt_age = time.monotonic(), crowd.age
        noticed = await watch.until(UNAVAILABLE, hurt, NOTICE_SECONDS + 5)
        if not kill:
            scorer.send_signal(signal.SIGCONT)
        told_age = crowd.age
        back = await watch.until(OK, hurt + noticed, CIRCUS_SECONDS + 2 * start_seconds)
        back_age = crowd.age
        await asyncio.sleep(AFTER_SECONDS)
        crowd.stopping = cached.stopping = True
        await asyncio.wait({loads}, timeout=ENDING_SECONDS)
        loads.cancel()
        watching.cancel()
        await asyncio.gather(loads, watching, return_exceptions=True)
    unavailable = [visit for visit in crowd.visits if visit.status == UNAVAILABLE]
    row: dict[str, Any] = {
        "noticed_seconds": noticed,
        "back_seconds": back + (noticed if kill else 0),
        "slowest_503_seconds": max((visit.done - max(visit.due, hurt_age) for visit in unavailable), default=0.0),
        "failed_in_its_hands": sum(visit.due < hurt_age for visit in unavailable),
        "refused_meanwhile": sum(visit.due >= hurt_age for visit in unavailable),
        "answered": sum(visit.status == OK for visit in crowd.visits),
        "cached_answered": len(cached.visits),
        "start_seconds": start_seconds,
    }
    row["broken"] = [
        *misfits(crowd.started, {OK, UNAVAILABLE, TOO_MANY}),  # one that hangs has no status yet
        *(f"cached: {each}" for each in misfits(cached.started, {OK})),
        *(
            f"503 for a request due {visit.due - back_age:.2f} s after it was ready again"
            for visit in unavailable
            if visit.due > back_age
        ),
        *("503 before anything had happened" for visit in unavailable if visit.done < hurt_age),
        *_late(row, kill=kill, told_seconds=told_age - hurt_age),
    ]
    return row


def _late(row: dict[str, Any], *, kill: bool, told_seconds: float) -> list[str]:
    bounds = {
        "noticed_seconds": READYZ_SECONDS if kill else NOTICE_SECONDS,
        "back_seconds": CIRCUS_SECONDS + row["start_seconds"],
    }
    # At once when it is known: before that nobody can tell a hung Scorer from a busy one.
    bounds["slowest_503_seconds"] = told_seconds + READYZ_SECONDS
    return [f"{name} {row[name]:.2f}, bound {bound:.2f}" for name, bound in bounds.items() if row[name] > bound]


async def scorer_rounds(home: Path, settings: dict[str, object], rounds: int, *, kill: bool) -> list[dict[str, Any]]:
    """Hurt the model worker of one server so many times."""
    begin = time.monotonic()
    server = Server(home, **settings)
    try:
        await asyncio.to_thread(server.wait_ready)
        start_seconds = time.monotonic() - begin
        rate, found = await rate_of(server), []
        for number in range(rounds):
            found.append(await disturbed(server, number, rate, kill=kill, start_seconds=start_seconds))
            told("SIGKILL" if kill else "SIGSTOP", number, found[-1])
        return found
    finally:
        server.stop()


def told(name: str, number: int, row: dict[str, Any]) -> None:
    """Print a round as it ends."""
    print(
        json.dumps(
            {
                "case": name,
                "round": number,
                **{key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()},
            }
        ),
        flush=True,
    )


def report(result: dict[str, Any]) -> str:
    """Write it in markdown."""
    columns = {
        "SIGTERM": {"start_seconds": "start, s", "readyz_off_seconds": "/readyz off, s", "exit_seconds": "exit, s"},
        "SIGKILL": {
            "start_seconds": "start, s",
            "noticed_seconds": "/readyz 503, s",
            "slowest_503_seconds": "slowest 503, s",
            "back_seconds": "ready again, s",
        },
        "SIGSTOP": {
            "noticed_seconds": "/readyz 503, s",
            "slowest_503_seconds": "slowest 503, s",
            "back_seconds": "ready again after SIGCONT, s",
        },
    }
    bounds = {
        "SIGTERM": f"to the server: every request due before the drain period of {DRAIN_SECONDS:g} s ended gets 200, or 503 with Retry-After; exit 0 within {SHUTDOWN_SECONDS:g} s",
        "SIGKILL": f"to the model worker: /readyz 503 within {READYZ_SECONDS:g} s, ready again within {CIRCUS_SECONDS:g} s plus the start",
        "SIGSTOP": f"to the model worker: noticed within {NOTICE_SECONDS:g} s (RERANKER_SCORER_SILENCE_SECONDS={SILENCE_SECONDS:g} and a heartbeat)",
    }
    lines = ["# What a signal does under load", "", sentence(result["provenance"]), f"Settings: {result['settings']}.", ""]
    for name, rows in result["rounds"].items():
        broken = [each for row in rows for each in row["broken"]]
        lines += [
            f"## {name}",
            "",
            f"{bounds[name]}. {len(rows)} rounds, {len(broken)} broken bounds{': ' + '; '.join(broken) if broken else ''}.",
            "",
        ]
        figures = [(title, [row[key] for row in rows]) for key, title in columns[name].items()]
        lines += table(
            ["", "least", "median", "greatest"],
            [
                [title, *(f"{value:.2f}" for value in (min(values), statistics.median(values), max(values)))]
                for title, values in figures
            ],
        )
        counts: Counter[str] = Counter()
        for row in rows:
            for key in ("taken", "later"):
                for status, count in row.get(key, {}).items():
                    counts[f"{key}: {'connection refused' if status == FAILED else status}"] += count
            for key in ("answered", "failed_in_its_hands", "refused_meanwhile", "cached_answered"):
                if key in row:
                    counts[key.replace("_", " ")] += row[key]
        lines += ["; ".join(f"{name} {count}" for name, count in counts.items()) + ".", ""]
    return "\n".join([*lines, "Raw figures: [resilience.json](resilience.json).", ""])


def main() -> int:
    """Run the cases that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--cases", nargs="+", choices=("SIGTERM", "SIGKILL", "SIGSTOP"), default=("SIGTERM", "SIGKILL", "SIGSTOP")
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--quantization", default="int8")
    parser.add_argument("--reports", type=Path, default=REPORTS)
    plan = parser.parse_args()
    settings: dict[str, object] = {
        "QUANTIZATION": plan.quantization,
        "RERANKER_DRAIN_SECONDS": DRAIN_SECONDS,
        "RERANKER_SHUTDOWN_SECONDS": SHUTDOWN_SECONDS,
        "RERANKER_SCORER_SILENCE_SECONDS": SILENCE_SECONDS,
    }
    result: dict[str, Any] = {
        "provenance": provenance(command_line("resilience", sys.argv[1:])),
        "settings": settings,
        "rounds": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        save(home, plan.quantization)
        for case in plan.cases:
            rows = result["rounds"][case] = []
            if case == "SIGTERM":
                for number in range(plan.rounds):
                    rows.append(asyncio.run(sigterm(home, settings, number)))
                    told(case, number, rows[-1])
            else:
                rows += asyncio.run(scorer_rounds(home, settings, plan.rounds, kill=case == "SIGKILL"))
    plan.reports.mkdir(exist_ok=True)
    (plan.reports / "resilience.md").write_text(report(result), encoding="utf-8")
    (plan.reports / "resilience.json").write_text(json.dumps(result) + os.linesep, encoding="utf-8")
    return int(any(row["broken"] for rows in result["rounds"].values() for row in rows))


if __name__ == "__main__":
    sys.exit(main())
