"""`make soak`: a share of the capacity for a long time, and what becomes of each process's memory."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from drive import Plan, drive, open_plan, warm_plan
from load_report import Result, timeline
from memory import Memory, growth
from redis_servers import RedisServer
from stress import capacity
from target import Target
from thresholds import Threshold, on_rejected, on_requests

SAMPLE_SECONDS = 5.0
REDIS_MEMORY = "2mb"  # of which Redis itself takes one


@contextlib.contextmanager
def small_caches(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Give the settings of a server whose caches are full soon, and the small Redis that it uses."""
    local = {"RERANKER_CACHE_ENTRIES": options.cache_entries}
    if not options.redis:
        yield local
        return
    with RedisServer(maxmemory=REDIS_MEMORY, maxmemory_policy="allkeys-lru") as redis:
        yield local | {"REDIS_ENABLED": "true", "REDIS_URL": redis.url}


def soak(options: argparse.Namespace, target: Target, plan: Plan) -> Result:
    """Offer a share of the measured capacity for minutes, and watch memory."""
    drive(warm_plan(plan))
    most = capacity(plan, target, options.capacity_seconds).told()
    print(json.dumps({"capacity": most}), flush=True)
    rate = options.share * most["answered_per_second"]
    steady = open_plan(plan, max(rate, 0.1), 60 * options.minutes)
    warm_seconds = 60 * options.warm_minutes
    with Memory(target.servers[0], SAMPLE_SECONDS) if target.servers else contextlib.nullcontext() as memory:
        stretch = drive(steady, target.processes)
    told = stretch.told()
    print(json.dumps({"soak": told}), flush=True)
    title = f"Soak: {options.minutes:g} minutes at {rate:.3g} requests/s, {100 * options.share:g} % of the measured {most['answered_per_second']:.3g}"
    thresholds = [*on_requests(told, options), on_rejected(told, options)]
    result = Result("soak", title, {"soak": stretch}, {"soak": told}, thresholds, plots=timeline(stretch.rows))
    result.extra["capacity"] = most
    if memory:
        _add_memory(result, memory, warm_seconds, options)
    else:
        result.notes.append("The server was not started here, so its memory was not measured.")
    return result


def _add_memory(result: Result, memory: Memory, warm_seconds: float, options: argparse.Namespace) -> None:
    grown = {name: growth(points, warm_seconds) for name, points in memory.samples.items()}
    for name, share in grown.items():
        rounded = None if share is None else round(100 * share, 2)
        result.thresholds.append(
            Threshold(f"growth of {name} after {options.warm_minutes:g} minutes", rounded, 100 * options.max_growth, " %")
        )
    result.thresholds.append(Threshold("processes that ended", len(memory.gone), 0))
    sizes = ", ".join(f"{name} {points[-1][1] / 1e6:.0f}" for name, points in memory.samples.items())
    result.notes.append(f"Resident memory at the end, MB: {sizes}.")
    result.extra |= {"growth": grown, "resident_bytes": memory.samples}

    def plot(path: Path) -> None:
        from load_plots import plot_memory

        plot_memory(path, memory.samples, warm_seconds)

    result.plots["memory"] = plot
