"""`make soak`: a share of the capacity for a long time, and what becomes of each process's memory."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import redis

from drive import Plan, drive, open_plan, warm_plan
from load_report import Result, timeline
from memory import Memory, growth
from redis_servers import RedisServer
from replay import metric
from rows import Row
from servers import Server
from stress import capacity
from target import Target
from thresholds import Threshold, on_rejected, on_requests

SAMPLE_SECONDS = 5.0
FULL_SECONDS = 180.0
REDIS_BYTES = 750_000  # for pairs, beside what an empty Redis takes


@contextlib.contextmanager
def small_caches(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Give the settings of a server whose caches are full soon, and the small Redis that it uses."""
    local = {"RERANKER_CACHE_ENTRIES": options.cache_entries}
    if not options.redis:
        yield local
        return
    with RedisServer(maxmemory_policy="allkeys-lru") as small:
        small.client().config_set("maxmemory", small.used_memory() + REDIS_BYTES)
        yield local | {"REDIS_ENABLED": "true", "REDIS_URL": small.url}


def soak(options: argparse.Namespace, target: Target, plan: Plan) -> Result:
    """Offer a share of the measured capacity for minutes, and watch memory."""
    drive(warm_plan(plan))
    # Of new text alone: caches that are not full yet know more than they will.
    new = replace(plan, workload=replace(plan.workload, repeats=0.0))
    most = capacity(new, target, options.capacity_seconds).told()
    print(json.dumps({"capacity": most}), flush=True)
    rate = options.share * most["answered_per_second"]
    steady = open_plan(plan, max(rate, 0.1), 60 * options.minutes)
    warm_seconds = 60 * options.warm_minutes
    with Memory(target.servers[0], SAMPLE_SECONDS) if target.servers else contextlib.nullcontext() as memory:
        stretch = drive(steady, target.processes)
    told = stretch.told()
    print(json.dumps({"soak": told}), flush=True)
    title = f"Soak: {options.minutes:g} minutes at {rate:.3g} requests/s, {100 * options.share:g} % of the measured {most['answered_per_second']:.3g} of new text"
    thresholds = [*on_requests(told, options), on_rejected(told, options)]
    result = Result("soak", title, {"soak": stretch}, {"soak": told}, thresholds, plots=timeline(stretch.rows))
    result.extra["capacity"] = most
    if memory:
        _add_caches(result, target.servers[0], options.cache_entries, target.settings.get("REDIS_URL"))
        _add_memory(result, memory, warm_seconds, options)
    else:
        result.notes.append("The server was not started here, so its memory was not measured.")
    return result


def full_after(rows: Sequence[Row], entries: int) -> float | None:
    """Say after how many seconds a cache of so many pairs was full, by the pairs computed for it; None if never."""
    known = 0
    for row in sorted(rows, key=lambda row: row.done):
        known += max(0, row.misses)
        if known >= entries:
            return row.done
    return None


def _add_caches(result: Result, server: Server, entries: int, redis_url: str | None) -> None:
    seconds = full_after(result.stretches["soak"].rows, entries)
    result.thresholds.append(Threshold("seconds until the process's cache was full", seconds, FULL_SECONDS))
    filled = f"was full after {seconds:.0f} s" if seconds is not None else "was never full"
    note = f"The process's cache of {entries:,} pairs {filled}"
    dropped = metric(server, "reranker_cache_evictions_total", "reason").get("full", 0)
    result.extra["caches"] = {"entries": entries, "full_after_seconds": seconds, "dropped": dropped}
    if redis_url:
        with redis.Redis.from_url(redis_url) as client:
            evicted = client.info("stats")["evicted_keys"]
        errors = metric(server, "reranker_redis_errors_total", "kind")
        result.extra["caches"] |= {"redis_evicted_queries": evicted, "redis_errors": errors}
        note += f"; a Redis with room for {REDIS_BYTES / 1e3:g} KB pushed out {evicted:,} queries, and {sum(errors.values())} calls to it failed"
    result.notes.append(f"{note}.")


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
