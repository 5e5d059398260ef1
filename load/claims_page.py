"""The figures of `make claims` in docs/claims.md: each stands between `<!--name-->` and `<!--/-->`, and is written there by the run."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loops import percentile

PAGE = Path(__file__).resolve().parents[1] / "docs" / "claims.md"
BURST, BIG, LONE, STEADY = (
    "24 clients x 2 documents",
    "8 clients x 20 documents",
    "1 client x 2 documents",
    "12 requests/s x 2 documents",
)
ON, OFF, ONE = "as it comes", "MICRO_BATCH_ENABLED=false", "RERANKER_MAX_PARALLEL=1"
_REDIS = "REDIS_ENABLED=true, ENABLE_PREDICTION_CACHE=false"
_MARKED = re.compile(r"<!--([a-z-]+)-->(.*?)<!--/-->")
_MB = 1e6


class Figures:
    """What the sentences are made of: medians over the rounds, percentiles over all requests."""

    def __init__(self, result: dict[str, Any]) -> None:
        self._raw = result["raw"]
        self._resident = result["resident_bytes"]

    def _rows(self, load: str, server: str) -> list[dict[str, Any]]:
        return [row for turn in self._raw["batching"] for row in turn if (row["load"], row["server"]) == (load, server)]

    def load(self, load: str, server: str, name: str) -> float:
        """A figure of a server under a load."""
        return statistics.median(row[name] for row in self._rows(load, server))

    def p50(self, load: str, server: str) -> float:
        """Milliseconds."""
        return percentile([latency for row in self._rows(load, server) for latency in row["latencies_ms"]], 0.5)

    def times(self, load: str, server: str) -> str:
        """How many times as many requests/s a server gets as it comes: the median over the rounds, and their range."""
        both = zip(self._rows(load, ON), self._rows(load, server), strict=True)
        ratios = [on["requests_per_second"] / other["requests_per_second"] for on, other in both]
        return f"{statistics.median(ratios):.2f} times ({min(ratios):.2f} to {max(ratios):.2f})"

    def median(self, kind: str, *path: str) -> float:
        """A figure of another kind."""

        def follow(turn: Any) -> float:
            for name in path:
                turn = turn[name]
            return float(turn)

        return statistics.median(follow(turn) for turn in self._raw[kind])

    def less(self, kind: str, path: str, small: str, great: str) -> float:
        """By how many per cent one figure is below another, the median over the rounds."""
        return statistics.median(100 * (1 - turn[path][small] / turn[path][great]) for turn in self._raw[kind])

    def resident(self, server: str, process: str) -> float:
        """MB."""
        return float(self._resident[server][process]) / _MB


def _launches(f: Figures, load: str) -> str:
    on, off = (f.load(load, server, "forwards_for_100_pairs") for server in (ON, OFF))
    return f"{off:.0f} for 100 pairs without joining, {on:.0f} with it, {100 * (1 - on / off):.0f} % fewer ({load})"


def _passes(f: Figures) -> str:
    passes, whole = (f.median(kind, "more_bytes") / _MB for kind in ("memory_in_passes", "memory_in_one_pass"))
    return f"1,000 pairs in one call take {passes:.0f} MB in passes of 4,096 tokens and {whole:.0f} MB in a single pass: {100 * (1 - passes / whole):.0f} % less"


SENTENCES: dict[str, Callable[[Figures], str]] = {
    "loop": lambda f: (
        f"a request without work (`GET /v1/models`) takes {f.median('event_loop', 'busy', 'p50_ms'):.1f} ms beside 8 clients x 20 new documents "
        f"(p99 {f.median('event_loop', 'busy', 'p99_ms'):.0f}) and {f.median('event_loop', 'idle', 'p50_ms'):.1f} ms when idle "
        f"(p99 {f.median('event_loop', 'idle', 'p99_ms'):.0f})"
    ),
    "parallel": lambda f: (
        f"over a server that takes one request at a time: {f.times(BURST, ONE)} at {BURST}, {f.times(BIG, ONE)} at {BIG}"
    ),
    "wait": lambda f: f"{1000 * f.load(STEADY, ON, 'wait_seconds'):.0f} ms on average at {STEADY}",
    "burst": lambda f: f"over `MICRO_BATCH_ENABLED=false`: {f.times(BURST, OFF)} at {BURST}, {f.times(BIG, OFF)} at {BIG}",
    "lone": lambda f: f"{LONE}: p50 {f.p50(LONE, ON):.0f} ms with it, {f.p50(LONE, OFF):.0f} ms without",
    "batch-memory": lambda f: (
        f"the model worker holds {f.resident(ON, 'Scorer'):.0f} MB with it and {f.resident(OFF, 'Scorer'):.0f} MB without"
    ),
    "steady": lambda f: (
        f"at {STEADY}, p50 {f.p50(STEADY, ON):.0f} ms with it and {f.p50(STEADY, OFF):.0f} ms without; {_launches(f, STEADY)}"
    ),
    "average": lambda f: (
        f"{f.load(BURST, ON, 'pairs_in_a_batch'):.1f} pairs at {BURST}, {f.load(BIG, ON, 'pairs_in_a_batch'):.1f} at {BIG}"
    ),
    "launches": lambda f: f"{_launches(f, BURST)}; {_launches(f, BIG)}",
    "repeats": lambda f: (
        f"{100 * f.median('repeated', 'hit_ratio'):.1f} % where each query comes ten times, which is {100 * f.median('repeated', 'hits_of_repeats'):.1f} % of the repeats"
    ),
    "cached": lambda f: (
        f"{f.less('known', 'process', 'known_ms', 'new_ms'):.1f} % less from the process, {f.less('known', 'redis', 'known_ms', 'new_ms'):.1f} % less from Redis (50 documents)"
    ),
    "computed": lambda f: f"50 new ones: {f.median('known', 'process', 'new_ms'):.0f} ms",
    "redis-memory": lambda f: (
        f"{f.resident(_REDIS, 'Reranker'):.0f} MB with Redis as its only cache, {f.resident(ON, 'Reranker'):.0f} MB with its own memory"
    ),
    "big-call": _passes,
    "tokenised": lambda f: (
        f"50 documents at once {f.median('tokenising', 'at_once_ms'):.1f} ms, one by one {f.median('tokenising', 'one_by_one_ms'):.1f} ms"
    ),
}


def filled(page: str, result: dict[str, Any]) -> str:
    """Return the page with this run's figures; a mark that is no sentence's name is a KeyError."""
    figures = Figures(result)
    return _MARKED.sub(lambda found: f"<!--{found[1]}-->{SENTENCES[found[1]](figures)}<!--/-->", page)


def marks(page: str) -> list[str]:
    """Names of the figures on a page."""
    return [name for name, _ in _MARKED.findall(page)]
