"""`make claims`' raw figures as markdown: medians over the rounds, percentiles over all requests of all rounds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from loops import percentile
from provenance import sentence
from tables import table

_MB = 1e6


def median(values: Iterable[float]) -> float:
    """Median over the rounds."""
    return statistics.median(values)


def markdown(result: dict[str, Any]) -> str:
    """Write the report."""
    raw = result["raw"]
    libraries = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    busiest = max(row["other_cores"] for turn in raw["batching"] for row in turn)
    told = (
        f"{sentence(result['provenance'])} {libraries}. {result['rounds']} rounds, {result['seconds']:g} s each load; the MiniLM-L6 cross-encoder "
        f"shape in {result['precision']}, texts of about 107 tokens a pair. Servers are asked in turns; other programs took at most {busiest} cores "
        "meanwhile. Medians over the rounds, the rounds' range in parentheses; p50 and p99 are of all rounds' requests together."
    )
    return "\n".join(
        [
            "# What docs/claims.md answers with",
            "",
            told,
            "",
            *_batching(raw["batching"]),
            *_known(raw["known"], raw["repeated"]),
            *_event_loop(raw["event_loop"]),
            *_memory(raw["memory_in_passes"], raw["memory_in_one_pass"]),
            *_tokenising(raw["tokenising"]),
            *_resident(result["resident_bytes"]),
            "Raw figures: `claims.json`.",
            "",
        ]
    )


def _ranged(values: Sequence[float], digits: int) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _batching(turns: Sequence[Sequence[dict[str, Any]]]) -> list[str]:
    rows = []
    for place, first in enumerate(turns[0]):
        own = [turn[place] for turn in turns]
        beside = [next(row for row in turn if row["load"] == first["load"]) for turn in turns]
        latencies = [latency for row in own for latency in row["latencies_ms"]]
        rows.append(
            [
                first["load"],
                first["server"],
                f"{first['documents'] * median(row['requests_per_second'] for row in own):.0f}",
                _ranged([a["requests_per_second"] / b["requests_per_second"] for a, b in zip(own, beside, strict=True)], 2),
                f"{percentile(latencies, 0.5):.0f} / {percentile(latencies, 0.99):.0f}",
                f"{median(row['pairs_in_a_batch'] for row in own):.1f}",
                f"{median(row['forwards_for_100_pairs'] for row in own):.1f}",
                f"{1000 * median(row['wait_seconds'] for row in own):.0f}",
            ]
        )
    head = [
        "load",
        "server",
        "pairs/s",
        "over as it comes",
        "p50 / p99 ms",
        "pairs in a Scorer batch",
        "forward passes for 100 pairs",
    ]
    return ["## Joining requests", "", *table([*head, "mean wait, ms"], rows)]


def _known(turns: Sequence[dict[str, dict[str, float]]], repeats: Sequence[dict[str, float]]) -> list[str]:
    rows = []
    for tier in turns[0]:
        new, known = [turn[tier]["new_ms"] for turn in turns], [turn[tier]["known_ms"] for turn in turns]
        less = [100 * (1 - b / a) for a, b in zip(new, known, strict=True)]
        rows.append([tier, _ranged(new, 1), _ranged(known, 1), _ranged(less, 1)])
    ratio, hits = (median(turn[name] for turn in repeats) for name in ("hit_ratio", "hits_of_repeats"))
    return [
        "## Known documents",
        "",
        "One client, 50 documents a request, p50.",
        "",
        *table(["from", "new, ms", "known, ms", "less, %"], rows),
        f"Where each of 40 queries is sent ten times in random order, {100 * ratio:.1f} % of the documents come from the cache, {100 * hits:.1f} % of those that repeat.",
        "",
    ]


def _event_loop(turns: Sequence[dict[str, dict[str, float]]]) -> list[str]:
    rows = [
        [name, *(_ranged([turn[key][share] for turn in turns], 2) for share in ("p50_ms", "p99_ms"))]
        for key, name in (("idle", "idle"), ("busy", "beside 8 clients x 20 new documents"))
    ]
    return ["## Waiting for the entry worker", "", "`GET /v1/models` every 10 ms.", "", *table(["", "p50 ms", "p99 ms"], rows)]


def _memory(passes: Sequence[dict[str, float]], whole: Sequence[dict[str, float]]) -> list[str]:
    rows = [
        [
            name,
            f"{median(turn['forwards'] for turn in turns):.0f}",
            _ranged([turn["more_bytes"] / _MB for turn in turns], 0),
            f"{median(turn['peak_bytes'] for turn in turns) / _MB:.0f}",
            f"{median(turn['pairs_per_second'] for turn in turns):.0f}",
        ]
        for name, turns in (("passes of 4,096 tokens", passes), ("one pass", whole))
    ]
    less = 100 * (1 - median(turn["more_bytes"] for turn in passes) / median(turn["more_bytes"] for turn in whole))
    return [
        "## Memory of 1,000 pairs in one call",
        "",
        *table(["", "forward passes", "more than before the call, MB", "peak of the process, MB", "pairs/s"], rows),
        f"In passes the call takes {less:.0f} % less.",
        "",
    ]


def _tokenising(turns: Sequence[dict[str, float]]) -> list[str]:
    one, at_once = ([turn[way] for turn in turns] for way in ("one_by_one_ms", "at_once_ms"))
    times = [a / b for a, b in zip(one, at_once, strict=True)]
    return [
        "## Tokenising 50 documents",
        "",
        *table(["one by one, ms", "at once, ms", "times as long"], [[_ranged(one, 2), _ranged(at_once, 2), _ranged(times, 2)]]),
    ]


def _resident(servers: dict[str, dict[str, int]]) -> list[str]:
    rows = [[name, *(f"{bytes_ / _MB:.0f}" for bytes_ in own.values())] for name, own in servers.items()]
    return [
        "## Memory of the servers in the end",
        "",
        *table(["server", "entry worker, MB", "model worker, MB"], rows),
    ]
