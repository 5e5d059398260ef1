"""Draw docs/dashboard.png: panels of the Grafana dashboard, from a real Prometheus that scraped a real run of changing load: `make dashboard-picture`.

Takes about four minutes. Without Grafana: titles, queries, legends and units are the dashboard's, the drawing is matplotlib's.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests"), str(REPOSITORY / "load")]

import dashboard  # noqa: E402  the path must be set first
import saving  # noqa: E402
from mixed_traffic import MixedTraffic, clients  # noqa: E402
from plots import save  # noqa: E402
from prometheus_server import PrometheusServer  # noqa: E402
from redis_servers import RedisServer  # noqa: E402
from servers import Server  # noqa: E402

mpl.use("Agg")
# One torch thread: two that share a core with the load wait for each other, and the picture would show that.
SETTINGS = {"RERANKER_WORKERS": 2, "RERANKER_TORCH_THREADS": 1, "RERANKER_MAX_QUEUE_PAIRS": 500, "RERANKER_CACHE_ENTRIES": 1000}
PHASE_SECONDS = 40.0
PHASES = ("2 clients", "8 clients", "and 24 more, new text", "8 clients", "without Redis", "Redis is back")
PANELS = (
    ("Requests by status", "Latency", "Errors by code"),
    ("Wait for the model", "Pairs in the queue", "Mean time by stage"),
    ("Documents by where the score came from", "Cache hit ratio", "Redis state"),
    ("Tokens", "Resident memory", "CPU"),
)
# What Grafana writes for its units: a factor and a name.
UNITS = {
    "reqps": (1, "requests/s"),
    "cps": (1, "/s"),
    "ops": (1, "/s"),
    "s": (1, "s"),
    "percentunit": (100, "%"),
    "bytes": (1e-6, "MB"),
    "none": (1, ""),
}
Points = list[tuple[float, float]]


def run(home: Path, phase_seconds: float) -> tuple[dict[str, dict[str, Points]], list[float]]:
    """Play the phases; by panel and legend the points, in seconds since the beginning, and when each phase began and the last ended."""
    begins: list[float] = []
    popular, new = MixedTraffic(1, documents=10), MixedTraffic(2, documents=30, new=1.0)
    with (
        RedisServer() as redis,
        Server(home, QUANTIZATION="auto", REDIS_ENABLED=True, REDIS_URL=redis.url, **SETTINGS) as server,
        PrometheusServer([f"127.0.0.1:{server.port}"]) as prometheus,
    ):

        def phase(count: int, extra: int = 0) -> None:
            begins.append(time.time())
            with clients(server.port, popular, count), clients(server.port, new, extra):
                time.sleep(phase_seconds)

        prometheus.wait_for("reranker_scorers_up == 1")
        phase(2)
        phase(8)
        phase(8, extra=24)
        phase(8)
        redis.pause()
        phase(8)
        redis.resume()
        phase(8)
        begins.append(time.time())
        drawn = {title: _points(prometheus, title, begins[0]) for line in PANELS for title in line}
    return drawn, [begin - begins[0] for begin in begins]


def _points(prometheus: PrometheusServer, title: str, begin: float) -> dict[str, Points]:
    """Ask for the queries of a panel."""
    found: dict[str, Points] = {}
    for ask in dashboard.asks(rate_interval="10s"):
        if ask.panel == title:
            for labels, values in prometheus.series(ask.query).items():
                named = dict(labels) | {"instance": "server"}  # there is one, on whatever port was free
                legend = re.sub(r"{{(\w+)}}", lambda found, named=named: named[found[1]], ask.legend)
                found[legend] = [(moment - begin, value) for moment, value in values if moment >= begin]
    return found


def draw(path: Path, drawn: dict[str, dict[str, Points]], begins: list[float]) -> None:
    """Draw each panel under its title, the phases as stripes."""
    figure = Figure(figsize=(12.5, 12), layout="constrained")
    panels = {panel["title"]: panel for panel in dashboard.load()["panels"] if panel["type"] == "timeseries"}
    for line, titles in zip(figure.subplots(len(PANELS), len(PANELS[0]), sharex=True), PANELS, strict=True):
        for axes, title in zip(line, titles, strict=True):
            _panel(axes, panels[title], drawn[title])
            for odd in range(1, len(begins) - 1, 2):
                axes.axvspan(begins[odd], begins[odd + 1], color="black", alpha=0.06, lw=0)
            axes.set_xlim(0, begins[-1])
            if titles == PANELS[-1]:
                axes.set_xlabel("s")
    told = " | ".join(f"{begin:.0f} s: {name}" for begin, name in zip(begins, PHASES, strict=False))
    figure.suptitle(
        f"Panels of deploy/grafana/dashboards/reranker.json, from Prometheus, of one server\n{told}",
        fontsize=11,
    )
    save(figure, path)


def _panel(axes: Axes, panel: dict[str, Any], series: dict[str, Points]) -> None:
    """Draw one panel as Grafana would: lines, or a stack."""
    factor, unit = UNITS[panel["fieldConfig"]["defaults"]["unit"]]
    if "stacking" in panel["fieldConfig"]["defaults"]["custom"]:
        times = sorted({moment for points in series.values() for moment, _ in points})
        heights = [[factor * dict(points).get(moment, 0.0) for moment in times] for points in series.values()]
        axes.stackplot(times, heights, labels=list(series), alpha=0.7)
    else:
        for legend, points in series.items():
            axes.plot([moment for moment, _ in points], [factor * value for _, value in points], label=legend, alpha=0.8)
    axes.set_title(panel["title"] + (f", {unit}" if unit else ""), fontsize=10)
    axes.set_ylim(bottom=0, top=1.25 * axes.get_ylim()[1])  # room for the legend
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=7, loc="upper left", framealpha=0.8)


def main() -> None:
    """Save the built-in model, play the phases, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phase-seconds", type=float, default=PHASE_SECONDS, help="each of the six phases lasts so long")
    parser.add_argument("--picture", type=Path, default=REPOSITORY / "docs" / "dashboard.png")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="reranker-dashboard-") as folder:
        saving.save(Path(folder))
        draw(options.picture, *run(Path(folder), options.phase_seconds))
    print(options.picture)


if __name__ == "__main__":
    main()
