"""Bounds that fail a run, each with one clear line when it is broken."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Threshold:
    """One bound on one figure. at_least: the figure must not be below it, instead of not above."""

    name: str
    value: float | None
    bound: float
    unit: str = ""
    at_least: bool = False

    @property
    def met(self) -> bool:
        """No figure at all, where nothing was answered, meets no bound."""
        if self.value is None:
            return False
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    @property
    def measured(self) -> str:
        """The figure for people."""
        return "none" if self.value is None else f"{self.value:g}{self.unit}"

    @property
    def asked(self) -> str:
        """The bound for people."""
        return f"{'at least' if self.at_least else 'at most'} {self.bound:g}{self.unit}"


def broken(thresholds: Iterable[Threshold]) -> list[str]:
    """Say each broken one in a line."""
    return [f"broken: {each.name}: {each.measured}, asked: {each.asked}" for each in thresholds if not each.met]


def on_requests(told: Mapping[str, Any], options: argparse.Namespace) -> list[Threshold]:
    """Make the bounds that every mode has. told: figures."""
    return [
        Threshold("failed requests, share", share(told["failed"], told["requests"]), options.max_failed),
        Threshold("p99", told["p99_ms"], options.max_p99_ms, " ms"),
    ]


def on_rejected(told: Mapping[str, Any], options: argparse.Namespace) -> Threshold:
    """Make the bound on requests that were turned away."""
    return Threshold("requests turned away with 429, share", share(told["rejected"], told["requests"]), options.max_rejected)


def share(part: int, whole: int) -> float | None:
    """Divide; None of nothing."""
    return part / whole if whole else None
