"""Bounds that fail a run, each with one clear line when it is broken."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


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
