"""The plots of the load reports: latency over time and by share of requests, rates, memory, and curves by offered rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from figures import by_second
from plots import label, log_scale, save
from ramp import Step
from rows import ANSWERED, Row

COLOURS = ("#08519c", "#d95f02", "#41ab5d", "#7f7f7f")
RATE = "requests/s offered, open loop"
SLICES = 60  # of a run, at most


def width_of(rows: Sequence[Row]) -> float:
    """Choose how many seconds a slice of a run is."""
    return max(1.0, round(max((row.due for row in rows), default=0.0) / SLICES))


def plot_latency(path: Path, rows: Sequence[Row]) -> None:
    """Draw each answer's latency over time, and the share of requests that took no longer."""
    answered = [row for row in rows if row.status == ANSWERED]
    figure = Figure(figsize=(10, 4), layout="constrained")
    over_time, distribution = figure.subplots(1, 2, sharey=True)
    over_time.plot([row.due for row in answered], [1000 * row.latency for row in answered], ".", ms=3, alpha=0.5, color="#9ecae1")
    slices = by_second(rows, width_of(rows))
    for name, colour in (("p50_ms", COLOURS[0]), ("p99_ms", COLOURS[1])):
        over_time.plot(slices["seconds"], slices[name], drawstyle="steps-post", label=name.removesuffix("_ms"), color=colour)
    log_scale(over_time)
    label(over_time, "s", "ms from due to answered", "Latency over time")
    latencies = sorted(1000 * row.latency for row in answered)
    shares = [100 * (number + 1) / len(latencies) for number in range(len(latencies))]
    distribution.plot(shares, latencies, color=COLOURS[0], label="latency")
    label(distribution, "% of the answers within", "", "Latency by share of answers")
    save(figure, path)


def plot_rates(path: Path, rows: Sequence[Row]) -> None:
    """Draw what was offered, answered, rejected and failed each second."""
    slices = by_second(rows, width_of(rows))
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for name, colour in zip(("answered", "offered", "rejected", "failed"), (COLOURS[0], "black", COLOURS[1], "red"), strict=True):
        if any(slices[name]):
            style = ":" if name == "offered" else "-"
            axes.plot(slices["seconds"], slices[name], style, drawstyle="steps-post", label=name, color=colour)
    axes.set_ylim(bottom=0)
    label(axes, "s, by when a request was due", "requests/s", "Requests")
    save(figure, path)


def plot_memory(path: Path, samples: Mapping[str, Sequence[tuple[float, int]]], warm_seconds: float) -> None:
    """Draw each process's resident memory. samples: seconds and bytes by process."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, points) in enumerate(samples.items()):
        colour = COLOURS[number % len(COLOURS)]
        axes.plot([second for second, _ in points], [size / 1e6 for _, size in points], label=name, color=colour)
    axes.axvline(warm_seconds, color="black", ls=":", label="warm from here on")
    axes.set_ylim(bottom=0)
    label(axes, "s", "MB resident", "Memory of each process")
    save(figure, path)


def plot_curves(path: Path, systems: Mapping[str, Sequence[Step]], bound_ms: float, unit: str) -> None:
    """Draw p99 and goodput by load. systems: the steps of each; of those of one level the last counts · unit: of a level."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    latency, goodput = figure.subplots(1, 2)
    for number, (name, steps) in enumerate(systems.items()):
        some = sorted({step.level: step for step in steps}.items())
        levels = [level for level, _ in some]
        style = {"marker": "o", "label": name, "color": COLOURS[number % len(COLOURS)]}
        p99 = [step.told["p99_ms"] for _, step in some]
        latency.plot(levels, [math.nan if value is None else value for value in p99], **style)
        goodput.plot(levels, [step.told["answered_per_second"] for _, step in some], **style)
    latency.axhline(bound_ms, color="black", ls=":", label="bound")
    log_scale(latency)
    if unit == RATE:
        most = goodput.get_xlim()[1]
        goodput.plot([0, most], [0, most], ":", color="black", label="all that is offered")
    for axes in (latency, goodput):
        axes.set_xlim(left=0)
    goodput.set_ylim(bottom=0)
    label(latency, unit, "ms", "p99 by load")
    label(goodput, unit, "requests/s answered", "Goodput by load")
    save(figure, path)
