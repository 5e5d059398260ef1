"""Bounds that a run has kept or broken, and the figures that they were held against."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MOST_SLOWER = 1.2  # of a p99 that shall be what it was


@dataclass
class Check:
    """One bound: what was asked and what was measured."""

    asked: str
    measured: str
    kept: bool


@dataclass
class Result:
    """What the phases found."""

    checks: list[Check] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)

    def check(self, asked: str, measured: str, *, kept: bool) -> None:
        """Note a bound."""
        self.checks.append(Check(asked, measured, kept))
        print(f"{'kept' if kept else 'BROKEN'}: {asked}: {measured}", flush=True)
