"""When requests of an open loop are due."""

from __future__ import annotations

import loops

KINDS = ("poisson", "constant")


def due_times(kind: str, *, per_second: float, seconds: float, seed: int) -> list[float]:
    """Times in seconds, in order; at least one. kind: `constant` is one each 1/per_second, `poisson` as many, each anywhere."""
    count = max(1, round(per_second * seconds))
    if kind == "constant":
        return [number / per_second for number in range(count)]
    return loops.arrivals(count, seconds, seed)
