"""The report of a run: markdown, figures as JSON, every request in a gzipped CSV, and plots."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from drive import Stretch
from load_options import USERS, described
from provenance import sentence
from rows import Row, write_archive
from tables import table
from thresholds import Threshold

COLUMNS = {
    "offered_per_second": "offered, requests/s",
    "answered_per_second": "answered, requests/s",
    "pairs_per_second": "goodput, pairs/s",
    "p50_ms": "p50 ms",
    "p90_ms": "p90 ms",
    "p99_ms": "p99 ms",
    "requests": "requests",
    "rejected": "429",
    "failed": "failed",
    "hit_share": "documents known",
    "computed_share": "pairs computed",
    "server_cpu_ms": "CPU of the servers, ms a request",
    "generator_cores": "cores of the load",
    "server_cores": "cores of the servers",
    "other_cores": "cores of others",
}
LATE_MS = 50.0  # of the load generator itself: worth telling from here on
EXACT = 1000  # figures from here on are shown whole
MEANING = (
    "Latency counts from when a request was due to the last byte of its answer, so waiting behind a slow answer counts. A request that is turned away with 429 is neither answered nor "
    "failed and has no latency; whatever is neither 200 nor 429 has failed. Goodput is pairs answered with 200. Pairs computed: of those asked for in what was answered."
)


@dataclass(slots=True)
class Result:
    """What a run found. stretches: by name, in order · figures: of each, as the table shows them · extra: more for the JSON."""

    mode: str
    title: str
    stretches: dict[str, Stretch]
    figures: dict[str, dict[str, Any]]
    thresholds: list[Threshold]
    notes: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    plots: dict[str, Callable[[Path], None]] = field(default_factory=dict)


def timeline(rows: Sequence[Row]) -> dict[str, Callable[[Path], None]]:
    """Return what draws a stretch over time; the plots' library is loaded when they are drawn."""

    def latency(path: Path) -> None:
        from load_plots import plot_latency

        plot_latency(path, rows)

    def rates(path: Path) -> None:
        from load_plots import plot_rates

        plot_rates(path, rows)

    return {"latency": latency, "rates": rates}


def write(result: Result, folder: Path, told: Mapping[str, Any], about: Mapping[str, Any], *, plots: bool) -> Path:
    """Write all files of a report. told: the provenance · about: what the server says of itself; returns the markdown's path."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = {
        "provenance": told,
        "target": about,
        "plans": {name: _plan(stretch) for name, stretch in result.stretches.items()},
        "figures": result.figures,
        "thresholds": [asdict(each) | {"met": each.met} for each in result.thresholds],
        **result.extra,
    }
    (folder / f"{result.mode}.json").write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    write_archive(folder / f"{result.mode}.csv.gz", {name: stretch.rows for name, stretch in result.stretches.items()})
    drawn = []
    if plots:
        for name, draw in result.plots.items():
            drawn.append(f"{result.mode}-{name}.png")
            draw(folder / drawn[-1])
    path = folder / f"{result.mode}.md"
    path.write_text(markdown(result, told, about, drawn), encoding="utf-8")
    return path


def markdown(result: Result, told: Mapping[str, Any], about: Mapping[str, Any], drawn: list[str]) -> str:
    """Write the report's text."""
    plan = next(iter(result.stretches.values())).plan
    columns = [name for name in COLUMNS if any(each.get(name) is not None for each in result.figures.values())]
    cells = [[name, *(_cell(each.get(column)) for column in columns)] for name, each in result.figures.items()]
    return "\n".join(
        [
            f"# {result.title}",
            "",
            sentence(dict(told)),
            "",
            f"Server: {server_line(about)} Asked by {USERS[plan.users]}: {described(plan.workload)}.",
            "",
            *(line for note in [*result.notes, *_late(result.figures)] for line in (note, "")),
            *table(["", *(COLUMNS[name] for name in columns)], cells),
            *table(
                ["threshold", "measured", "asked", "met"],
                ([each.name, each.measured, each.asked, "yes" if each.met else "**no**"] for each in result.thresholds),
            ),
            *(line for name in drawn for line in (f"![{result.title}]({name})", "")),
            f"{MEANING} Figures and settings: `{result.mode}.json`; every request: `{result.mode}.csv.gz`.",
            "",
        ]
    )


def server_line(about: Mapping[str, Any]) -> str:
    """Say what was measured."""
    model, versions = about.get("model", {}), about.get("versions", {})
    settings = ", ".join(f"`{name}={value}`" for name, value in about.get("settings", {}).items())
    place = (
        "started for this run" + (f" with {settings}" if settings else "") if about.get("started_here") else "was running already"
    )
    if not model:
        return f"{place}; it tells nothing of its model."
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
    precision = "fp32" if model["quantization"] == "none" else model["quantization"]
    return f"{model['tag']} ({model['kind']}) in {precision} on {model['device']}, {place}; {libraries}."


def _late(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say where the load generator could not keep up; the latencies count it."""
    late = {name: each["late_p99_ms"] for name, each in figures.items() if (each["late_p99_ms"] or 0) > LATE_MS}
    return [
        f"{name}: requests were sent up to {ms:g} ms late (p99), for want of CPU beside the server." for name, ms in late.items()
    ]


def _plan(stretch: Stretch) -> dict[str, Any]:
    plan = asdict(stretch.plan)
    del plan["url"]
    for name in ("corpus", "queries"):
        plan["workload"][name] = Path(plan["workload"][name]).name if plan["workload"][name] else None
    return plan


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:,.4g}" if isinstance(value, float) and abs(value) < EXACT else f"{value:,.0f}"
