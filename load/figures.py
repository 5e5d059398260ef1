"""What rows say: rates, percentiles of the time since a request was due, and what the caches saved."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from loops import percentile
from rows import ANSWERED, REJECTED, Row

SHARES = (0.5, 0.9, 0.95, 0.99, 0.999)


def figures(rows: Sequence[Row], offered_seconds: float = 0.0) -> dict[str, Any]:
    """Sum a stretch of load up. offered_seconds: of an open loop; a rate is what was answered over this time, or over the time until the last answer.

    A request that is answered with 429 is no answered one and no failed one; it has no latency.
    """
    answered = [row for row in rows if row.status == ANSWERED]
    failed = [row for row in rows if row.status not in (ANSWERED, REJECTED)]
    latencies = [1000 * row.latency for row in answered]
    begin = 0.0 if offered_seconds else min((row.due for row in rows), default=0.0)
    seconds = max([offered_seconds, *(row.done - begin for row in rows)])
    told = [row for row in answered if row.misses >= 0]
    pairs = sum(row.documents for row in told)
    return {
        "requests": len(rows),
        "answered": len(answered),
        "rejected": len(rows) - len(answered) - len(failed),
        "failed": len(failed),
        "errors": dict(Counter(row.error or str(row.status) for row in failed)),
        "seconds": round(seconds, 2),
        "offered_per_second": _rate(len(rows), offered_seconds or seconds),
        "answered_per_second": _rate(len(answered), seconds),
        "pairs_per_second": _rate(sum(row.documents for row in answered), seconds),
        **{f"p{100 * share:g}_ms": _rounded(percentile(latencies, share)) for share in SHARES},
        "max_ms": _rounded(max(latencies, default=math.nan)),
        "late_p99_ms": _rounded(percentile([1000 * (row.sent - row.due) for row in rows], 0.99)),
        "repeated_share": _share(sum(row.repeated for row in rows), len(rows)),
        "pairs": pairs,
        "hits": sum(row.hits for row in told),
        "shared": sum(row.shared for row in told),
        "computed": sum(row.misses for row in told),
        "computed_share": _share(sum(row.misses for row in told), pairs),
        "hit_share": _share(sum(row.hits for row in answered if row.hits >= 0), sum(row.documents for row in answered)),
    }


def by_second(rows: Sequence[Row], width: float) -> dict[str, list[float]]:
    """Cut a run into slices by when a request was due. width: in seconds; rates are a second's."""
    slices: dict[int, list[Row]] = {}
    for row in rows:
        slices.setdefault(int(row.due / width), []).append(row)
    last = max(slices, default=-1)
    each = [slices.get(number, []) for number in range(last + 1)]
    return {
        "seconds": [width * number for number in range(last + 1)],
        "offered": [len(some) / width for some in each],
        "answered": [sum(row.status == ANSWERED for row in some) / width for some in each],
        "rejected": [sum(row.status == REJECTED for row in some) / width for some in each],
        "failed": [sum(row.status not in (ANSWERED, REJECTED) for row in some) / width for some in each],
        "p50_ms": [_of(some, 0.5) for some in each],
        "p99_ms": [_of(some, 0.99) for some in each],
    }


def _of(rows: Sequence[Row], share: float) -> float:
    return percentile([1000 * row.latency for row in rows if row.status == ANSWERED], share)


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 3) if seconds else 0.0


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 2)
