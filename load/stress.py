"""`make stress`: more and more load until a bound breaks, and the knee before it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drive import Plan, Stretch, closed_plan, drive, fresh, open_plan, warm_plan
from load_report import Result
from ramp import Bounds, Step, knee, ramp
from target import Target
from thresholds import Threshold, share

CAPACITY_CLIENTS, CAPACITY_SECONDS = 16, 10.0


def capacity(plan: Plan, target: Target, seconds: float = CAPACITY_SECONDS) -> Stretch:
    """Measure what a closed loop of 16 clients is answered, the texts apart from all others."""
    return drive(fresh(closed_plan(plan, CAPACITY_CLIENTS, seconds), -1), target.processes)


class Ramp:
    """One ramp against a target: its steps and their stretches. name: of what is measured, in the report."""

    def __init__(self, plan: Plan, target: Target, name: str, *, seconds: float, in_clients: bool = False) -> None:
        self._plan, self._target, self._name = plan, target, name
        self._seconds, self._in_clients = seconds, in_clients
        self.stretches: dict[str, Stretch] = {}

    def measure(self, level: float) -> Mapping[str, Any]:
        """Put one level of load on it."""
        number = len(self.stretches) + 1
        plan = fresh(self._plan, number)
        closed = closed_plan(plan, round(level), self._seconds)
        stretch = drive(closed if self._in_clients else open_plan(plan, level, self._seconds), self._target.processes)
        told = stretch.told()
        unit = "clients" if self._in_clients else "requests/s"
        name = f"{self._name}{number}: {level:.3g} {unit}"
        self.stretches[name] = stretch
        print(json.dumps({name: told}), flush=True)
        return told


def stress(options: argparse.Namespace, target: Target, plan: Plan) -> Result:
    """Offer more and more, until a bound breaks."""
    in_clients = bool(options.max_concurrency)
    bounds = Bounds(options.max_p99_ms, options.min_answered, options.max_failed)
    drive(warm_plan(plan))
    first, most, factor = options.first, options.most_steps, options.factor
    if in_clients:
        first, most, factor = 1.0, options.max_concurrency.bit_length(), 2.0
    elif not first:
        first = 0.3 * capacity(plan, target).told()["answered_per_second"]
    run = Ramp(plan, target, "", seconds=options.step_seconds, in_clients=in_clients)
    steps = ramp(run.measure, bounds, first=max(first, 0.1), factor=factor, most_steps=most, refine=0 if in_clients else 1)
    return _result(options, steps, run)


def _result(options: argparse.Namespace, steps: list[Step], run: Ramp) -> Result:
    best, unit = knee(steps), "clients" if options.max_concurrency else "requests/s"
    over = [step for step in steps if step.broken and (best is None or step.level > best.level)]
    last = min(over, key=lambda step: step.level, default=None)
    why = (
        f" The next one, at {last.level:.3g}, did not hold: {'; '.join(last.broken)}."
        if last
        else " No step broke a bound: there is more to offer (--most-steps, --first)."
    )
    found = (
        f"**Knee: {best.level:.3g} {unit}**, p99 {best.told['p99_ms']:g} ms, {best.told['pairs_per_second']:g} pairs/s."
        if best
        else "No step held."
    )
    failed, asked = (sum(step.told[name] for step in steps) for name in ("failed", "requests"))
    thresholds = [
        Threshold(f"knee, {unit}", best.level if best else None, options.min_knee, at_least=True),
        Threshold("failed requests of all steps, share", share(failed, asked), options.max_failed),
    ]

    def curves(path: Path) -> None:
        from load_plots import RATE, plot_curves

        plot_curves(path, {"measured": steps}, options.max_p99_ms, "clients, closed loop" if options.max_concurrency else RATE)

    held = (
        f"A step holds with a p99 of at most {options.max_p99_ms:g} ms, {100 * options.min_answered:g} % of what is offered answered with 200, and no more than "
        f"{100 * options.max_failed:g} % failed. Being turned away with 429 is how an overloaded server should answer: it counts as not answered, not as failed. "
        "A step that does not hold is measured twice."
    )
    title = f"Stress: {'closed' if options.max_concurrency else 'open'} loop, {options.step_seconds:g} s a step"
    figures = dict(zip(run.stretches, (dict(step.told) for step in steps), strict=True))
    extra = {
        "knee": best.level if best else None,
        "unit": unit,
        "broken": {name: step.broken for name, step in zip(figures, steps, strict=True)},
    }
    return Result("stress", title, run.stretches, figures, thresholds, [found + why, held], extra, {"curves": curves})
