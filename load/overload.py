"""Three times the load that the server bears, one big client beside small ones, and callers who hang up: `make overload`.

Every phase asks for text that nobody has sent before, but for the known requests beside the overload. All bounds are checked; a broken one fails the run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests"), str(REPOSITORY / "load")]

from prometheus_client.parser import text_string_to_metric_families  # noqa: E402  the path must be set first

from bounds import MOST_SLOWER, Result  # noqa: E402
from overload_turns import QUEUE_TIMEOUT_SECONDS, overload  # noqa: E402
from provenance import provenance, sentence  # noqa: E402
from report_options import REPORTS, command_line  # noqa: E402
from saving import save  # noqa: E402
from servers import Server  # noqa: E402
from tables import table  # noqa: E402
from visitors import DOCUMENTS, OK, Crowd, alone, latency, new_bodies  # noqa: E402

BIG_DOCUMENTS = 1000
LEAVING_CLIENTS, LEAVING_DOCUMENTS = 8, 50
FILLING, ABANDONED = 60, 10  # requests that fill what may be under way, and of those who stay and of those who leave


def counters(server: Server) -> dict[str, float]:
    """Read every sample without labels, and those of one label by their value."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(server.get("/metrics").text):
        for sample in family.samples:
            found[sample.name + "".join(f":{value}" for value in sample.labels.values())] = sample.value
    return found


async def fairness(server: Server, result: Result, plan: argparse.Namespace) -> None:
    """Send 10-document requests alone and beside one client of 1,000-document ones."""
    p99 = latency(await alone(server.url, plan.seconds / 2, 11), 0.99)
    before = counters(server)
    async with Crowd(server.url) as small, Crowd(server.url) as big:
        giant = asyncio.create_task(big.closed_loop(new_bodies(12, BIG_DOCUMENTS), clients=1, seconds=plan.seconds + 3))
        await asyncio.sleep(3)
        await small.closed_loop(new_bodies(13, DOCUMENTS), clients=1, seconds=plan.seconds)
        beside, failures = latency(small.visits, 0.99), [visit for visit in small.visits + big.visits if visit.status != OK]
        await giant
    after = counters(server)
    batches = after["reranker_batch_seconds_count"] - before["reranker_batch_seconds_count"]
    batch = (after["reranker_batch_seconds_sum"] - before["reranker_batch_seconds_sum"]) / batches
    result.raw["fairness"] = {
        "alone_p99_seconds": p99,
        "beside_p50_seconds": latency(small.visits, 0.5),
        "beside_p99_seconds": beside,
        "batch_seconds": batch,
        "big_requests": len(big.visits),
        "failures": len(failures),
        "visits": [[round(visit.due, 3), round(visit.seconds, 4)] for visit in small.visits],
    }
    result.check(
        f"{DOCUMENTS}-document requests beside {BIG_DOCUMENTS}-document ones: p99 <= p99 alone + two Scorer batches",
        f"{beside:.2f} s; alone {p99:.2f} s, a batch {batch:.2f} s on average: bound {p99 + 2 * batch:.2f} s; {len(failures)} failed",
        kept=beside <= p99 + 2 * batch and not failures,
    )


async def leaving(server: Server, result: Result, plan: argparse.Namespace) -> None:
    """Let eight clients ask without end; then let half of them hang up midway, time after time."""
    p99s: dict[float, float] = {}
    patience = math.inf
    for share, seed in ((0.0, 22), (0.5, 23)):
        async with Crowd(server.url) as stay, Crowd(server.url) as leave:
            make = new_bodies(seed, LEAVING_DOCUMENTS)
            await asyncio.gather(
                stay.closed_loop(make, clients=LEAVING_CLIENTS // 2, seconds=plan.seconds),
                leave.closed_loop(make, clients=LEAVING_CLIENTS // 2, seconds=plan.seconds, patience=patience, seed=seed),
            )
        p99s[share], patience = latency(stay.visits, 0.99), latency(stay.visits, 0.5)
        result.raw[f"leaving {share:g}"] = {
            "patience_seconds": None if share == 0 else patience,
            "stayed": len(stay.visits),
            "others": Counter(visit.status for visit in leave.visits),
            "p50_seconds": latency(stay.visits, 0.5),
            "p99_seconds": p99s[share],
        }
        await _settled(server)
    result.check(
        f"half of {LEAVING_CLIENTS} clients hang up midway: the others' p99 not over 1.2 times what it was",
        f"{p99s[0.5]:.2f} s for {p99s[0.0]:.2f} s: {p99s[0.5] / p99s[0.0]:.2f}",
        kept=p99s[0.5] <= MOST_SLOWER * p99s[0.0],
    )
    await _abandoned(server, result)


async def _abandoned(server: Server, result: Result) -> None:
    """Hold the Scorer, so that it is known what is under way, let callers hang up, and let it go on: counters must add up to the pair."""
    before = await _settled(server)
    [scorer] = server.workers("Scorer")
    small, big = new_bodies(31, DOCUMENTS), new_bodies(32, LEAVING_DOCUMENTS)
    scorer.suspend()
    try:
        async with Crowd(server.url) as crowd:
            fill = [asyncio.create_task(crowd.visit(small())) for _ in range(FILLING)]
            await _until(server, lambda told: told[QUEUED] - before[QUEUED] == FILLING * DOCUMENTS)
            under_way = counters(server)[SENT]
            stay, leave = ([asyncio.create_task(crowd.visit(big())) for _ in range(ABANDONED)] for _ in range(2))
            told = await _until(
                server, lambda told: told[QUEUED] - before[QUEUED] == FILLING * DOCUMENTS + 2 * ABANDONED * LEAVING_DOCUMENTS
            )
            for task in leave:
                task.cancel()
            # Of those that are left, some have pairs under way; all others wait.
            await _until(server, lambda now: now[WAITING] == told[WAITING] - ABANDONED)
            scorer.resume()
            await asyncio.gather(*fill, *stay)
    finally:
        scorer.resume()
    after = await _settled(server)
    queued, sent, computed = (after[name] - before[name] for name in (QUEUED, SENT, COMPUTED))
    wanted, left = FILLING * DOCUMENTS + ABANDONED * LEAVING_DOCUMENTS, ABANDONED * LEAVING_DOCUMENTS
    result.raw["abandoned"] = {"queued": queued, "sent": sent, "computed": computed, "wanted": wanted, "left": left}
    result.check(
        "of the pairs of callers who hung up none is computed that was not under way",
        f"{queued:.0f} queued, {told[SENT] - under_way:.0f} of the {left} pairs of those who left under way by then, {sent:.0f} sent, {computed:.0f} computed",
        kept=told[SENT] == under_way
        and sent == computed == wanted
        and queued - sent == left
        and all(visit.status == OK for visit in crowd.visits),
    )


QUEUED, SENT = "reranker_queued_pairs_total", "reranker_sent_pairs_total"
COMPUTED, WAITING = "reranker_pairs_total:scored", "reranker_requests_waiting"


async def _until(server: Server, condition: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    """Read the counters until they fulfil a condition."""
    async with asyncio.timeout(8):  # a Scorer that is held for longer counts as hung
        while not condition(told := counters(server)):  # noqa: ASYNC110  a server tells nobody when its counters change
            await asyncio.sleep(0.05)
        return told


async def _settled(server: Server) -> dict[str, float]:
    """Wait until nothing is under way and read the counters."""
    async with asyncio.timeout(60):
        while True:
            told = counters(server)
            if not told.get("reranker_requests_active") and not told.get(WAITING):
                await asyncio.sleep(1.5)  # a batch that nobody waits for may still run
                return counters(server)
            await asyncio.sleep(0.1)


def report(result: Result, told: dict[str, Any], server_settings: dict[str, Any], health: dict[str, Any]) -> str:
    """Write it in markdown."""
    model = health["model"]
    lines = [
        "# Overload, fairness, callers who hang up",
        "",
        sentence(told),
        f"Model {model['source']} in {model['quantization']} on {model['device']}; settings {server_settings}.",
        "",
        *table(
            ["bound", "measured", ""],
            [[each.asked, each.measured, "kept" if each.kept else "**broken**"] for each in result.checks],
        ),
        "All text is new but for the known requests; latencies count from when a request was due. Raw figures: [overload.json](overload.json).",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Run the phases that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phases", nargs="+", choices=list(PHASES), default=list(PHASES))
    parser.add_argument("--seconds", type=float, default=60.0, help="of each overload, and of each other phase's load")
    parser.add_argument(
        "--turns",
        type=int,
        default=4,
        choices=range(1, 21),
        metavar="1..20",
        help="overloads, one after the other; between them a quarter of the time for one client, and half of it for the peak",
    )
    parser.add_argument("--quantization", default="int8")
    parser.add_argument("--reports", type=Path, default=REPORTS)
    plan = parser.parse_args()
    told = provenance(command_line("overload", sys.argv[1:]))
    result = Result()
    told_of: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder), plan.quantization)
        for name in plan.phases:
            phase, more = PHASES[name]
            with Server(Path(folder), QUANTIZATION=plan.quantization, **more) as server:
                asyncio.run(phase(server, result, plan))
                told_of = server.get("/health").json()
    settings = {"QUANTIZATION": plan.quantization} | {
        f"{name} of {phase}": value for phase, (_, more) in PHASES.items() for name, value in more.items()
    }
    plan.reports.mkdir(exist_ok=True)
    (plan.reports / "overload.md").write_text(report(result, told, settings, told_of), encoding="utf-8")
    raw = {"provenance": told, "settings": settings, "checks": [vars(each) for each in result.checks], **result.raw}
    (plan.reports / "overload.json").write_text(json.dumps(raw) + os.linesep, encoding="utf-8")
    return 0 if all(each.kept for each in result.checks) else 1


PHASES: dict[str, tuple[Callable[[Server, Result, argparse.Namespace], Awaitable[None]], dict[str, object]]] = {
    # A cache that is full before the overload begins, and keeps the known requests.
    "overload": (overload, {"RERANKER_QUEUE_TIMEOUT": QUEUE_TIMEOUT_SECONDS, "RERANKER_CACHE_ENTRIES": 4000}),
    "fairness": (fairness, {}),
    "leaving": (leaving, {}),
}

if __name__ == "__main__":
    sys.exit(main())
