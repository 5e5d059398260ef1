"""Raises a load step by step until it is too much, and finds the knee: the most that was still held."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

TRIES = 2  # a step that breaks a bound by chance is measured again


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a step must hold. least_answered, most_failed: shares of the requests."""

    p99_ms: float
    least_answered: float = 0.95
    most_failed: float = 0.0

    def breaks(self, told: Mapping[str, Any]) -> list[str]:
        """Say what a step's figures break. Turned-away requests are not answered ones, and no failed ones."""
        found = []
        if told["p99_ms"] is None or told["p99_ms"] > self.p99_ms:
            found.append(f"p99 {told['p99_ms']} ms, over {self.p99_ms:g}")
        if told["answered"] < self.least_answered * told["requests"]:
            found.append(f"{told['answered']} of {told['requests']} requests answered")
        if told["failed"] > self.most_failed * told["requests"]:
            found.append(f"{told['failed']} failed")
        return found


@dataclass(frozen=True, slots=True)
class Step:
    """One level of load. level: requests/s or clients · broken: what it did not hold."""

    level: float
    told: Mapping[str, Any]
    broken: list[str]


def ramp(
    measure: Callable[[float], Mapping[str, Any]],
    bounds: Bounds,
    *,
    first: float,
    factor: float,
    most_steps: int,
    refine: int = 1,
) -> list[Step]:
    """Measure level after level until one breaks a bound twice, then `refine` times in the middle between held and broken.

    Where the first one breaks, lower ones follow until one holds. measure: gives the figures of a level. Returns all that was measured, in order.
    """
    steps: list[Step] = []

    def holds(level: float) -> bool:
        for _ in range(TRIES):
            told = measure(level)
            steps.append(Step(level, told, bounds.breaks(told)))
            if not steps[-1].broken:
                return True
        return False

    held, broke, level = 0.0, math.inf, first
    while len({step.level for step in steps}) < most_steps and not (held and broke < math.inf):
        if holds(level):
            held, level = level, level * factor
        else:
            broke, level = level, level / factor
    for _ in range(refine if held and broke < math.inf else 0):
        middle = math.sqrt(held * broke)
        held, broke = (middle, broke) if holds(middle) else (held, middle)
    return steps


def knee(steps: list[Step]) -> Step | None:
    """Return the highest step that was held; None where there was none."""
    return max((step for step in steps if not step.broken), key=lambda step: step.level, default=None)
