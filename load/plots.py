"""The plots of `make compare` and `make quality`, and how all plots look: small PNGs, drawn without a display."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter

from compare_report import BASELINES, names, of, pairs_per_second, pooled
from tables import precision_name

mpl.use("Agg")
OWN_COLOURS = ("#9ecae1", "#4292c6", "#08519c", "#41ab5d", "#00441b")
PEER_COLOURS = {"Infinity": "#d95f02", "sentence-transformers": "#7f7f7f"}
DPI = 110


def colours(systems: list[str]) -> dict[str, str]:
    """Give the service's precisions shades of blue, and the others a colour each."""
    own = [system for system in systems if system not in BASELINES]
    return {**PEER_COLOURS, **dict(zip(own, OWN_COLOURS * len(own), strict=False))}


def save(figure: Figure, path: Path) -> None:
    """Write a PNG that does not change when its figures do not."""
    figure.savefig(path, dpi=DPI, metadata={"Software": None})


def plot_throughput(path: Path, result: dict[str, Any]) -> None:
    """Draw pairs/s by the number of clients."""
    windows = [window for window in result["windows"] if window["kind"] == "closed"]
    clients = sorted({window["clients"] for window in windows})
    systems = names(windows)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for system in systems:
        rates = [pairs_per_second(of(windows, system, clients=count), result["plan"]["documents"]) for count in clients]
        axes.plot(clients, rates, marker="o", label=system, color=colours(systems)[system])
    axes.set_xscale("log", base=2)
    axes.set_xticks(clients, [str(count) for count in clients])
    axes.set_ylim(bottom=0)
    label(axes, "clients, closed loop", "pairs/s", "Throughput by concurrency")
    save(figure, path)


def plot_latency(path: Path, result: dict[str, Any]) -> None:
    """Draw p50 and p99 by the pairs/s offered."""
    windows = [window for window in result["windows"] if window["kind"] == "open"]
    fractions = sorted({window["fraction"] for window in windows})
    systems = names(windows)
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, share in zip(panels, (0.5, 0.99), strict=True):
        for system in systems:
            found = [of(windows, system, fraction=fraction) for fraction in fractions]
            offered = [
                result["plan"]["documents"] * statistics.median(window["offered_requests_per_second"] for window in each)
                for each in found
            ]
            latencies = [pooled(each, share) for each in found]
            axes.plot(offered, latencies, marker="o", label=system, color=colours(systems)[system])
        log_scale(axes)
        axes.set_xlim(left=0)
        label(axes, "pairs/s offered, open loop", "ms", f"p{100 * share:g} by load")
    save(figure, path)


def plot_quality(path: Path, result: dict[str, Any]) -> None:
    """Draw nDCG@10, Kendall tau and memory of each precision."""
    rows = [row for row in result["precisions"] if "data" in row]
    precisions = [precision_name(row["precision"]) for row in rows]
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    data = list(rows[0]["data"])
    _bars(first, precisions, {name: [row["data"][name]["ndcg10"] for row in rows] for name in data}, "{:.3f}")
    label(first, "precision", "nDCG@10", "nDCG@10")
    taus = {name: [row["data"][name]["kendall_tau"] for row in rows] for name in data}
    _bars(second, precisions, {name: [math.nan if tau is None else tau for tau in each] for name, each in taus.items()}, "{:.3f}")
    label(second, "precision", "mean tau-b of a query", "Kendall tau against fp32")
    memory = {"Scorer process, resident": [row["scorer_resident_bytes"] / 1e6 for row in rows]}
    if all(row["weight_bytes"] for row in rows):
        memory["weights"] = [row["weight_bytes"] / 1e6 for row in rows]
    _bars(third, precisions, memory, "{:.0f}")
    label(third, "precision", "MB", "Memory")
    for axes in (first, second, third):
        axes.set_ylim(top=1.3 * axes.get_ylim()[1])  # room for the legend
    save(figure, path)


def _bars(axes: Axes, groups: list[str], heights: dict[str, list[float]], label: str) -> None:
    width = 0.8 / len(heights)
    for number, (name, values) in enumerate(heights.items()):
        places = [group + width * (number - (len(heights) - 1) / 2) for group in range(len(groups))]
        bars = axes.bar(places, values, width, label=name, color=OWN_COLOURS[number % len(OWN_COLOURS)])
        axes.bar_label(bars, [label.format(value) for value in values], fontsize=7)
    axes.set_xticks(range(len(groups)), groups)


def log_scale(axes: Axes) -> None:
    """Let y rise by factors, its ticks plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.minorticks_off()


def label(axes: Axes, x: str, y: str, title: str) -> None:
    """Name the axes and add grid and legend."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title)
    axes.grid(visible=True, axis="y", alpha=0.3)
    axes.legend(fontsize=8)
