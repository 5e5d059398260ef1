"""`make compare`'s raw figures as markdown: medians and ratios over the rounds, percentiles over all requests of all rounds."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loops import percentile
from provenance import sentence
from tables import precision_name, table

SENTENCE_TRANSFORMERS, INFINITY = "sentence-transformers", "Infinity"
BASELINES = (INFINITY, SENTENCE_TRANSFORMERS)
Windows = Sequence[dict[str, Any]]


def label(precision: str) -> str:
    """Name the service in a precision."""
    return f"this service, {precision_name(precision)}"


def names(windows: Windows) -> list[str]:
    """List the systems, in the order of their turns."""
    return list(dict.fromkeys(window["system"] for window in windows))


def of(windows: Windows, system: str, **load: Any) -> list[dict[str, Any]]:
    """Pick a system's windows under one load, in the order of the rounds."""
    return [
        window
        for window in windows
        if window["system"] == system and all(window.get(key) == value for key, value in load.items())
    ]


def pairs_per_second(windows: Windows, documents: int) -> float:
    """Median over the rounds."""
    return documents * statistics.median(window["requests_per_second"] for window in windows)


def pooled(windows: Windows, share: float) -> float:
    """Percentile, in ms, of all rounds' requests together."""
    return percentile([latency for window in windows for latency in window["latencies_ms"]], share)


def ratios(windows: Windows, baseline: Windows) -> list[float]:
    """Throughput over the baseline's, round by round; a baseline that answered nothing has no ratio."""
    by_round = {window["round"]: window["requests_per_second"] for window in baseline}
    return [window["requests_per_second"] / by_round[window["round"]] for window in windows if by_round.get(window["round"])]


def latency_shares(windows: Windows, baseline: Windows) -> list[float]:
    """p50 over the baseline's, round by round."""
    by_round = {window["round"]: percentile(window["latencies_ms"], 0.5) for window in baseline if window["latencies_ms"]}
    return [
        percentile(window["latencies_ms"], 0.5) / by_round[window["round"]]
        for window in windows
        if window["latencies_ms"] and window["round"] in by_round
    ]


def median_and_rounds(values: Sequence[float]) -> str:
    """Write the median, and the rounds it comes from."""
    if not values:
        return "-"
    return f"**{statistics.median(values):.2f}** ({', '.join(f'{value:.2f}' for value in values)})"


def throughput_table(windows: Windows, documents: int) -> list[str]:
    """Write pairs/s of each system by the number of clients."""
    clients = sorted({window["clients"] for window in windows if window["kind"] == "closed"})
    rows = [
        [system, *(f"{pairs_per_second(of(windows, system, kind='closed', clients=count), documents):.1f}" for count in clients)]
        for system in names(windows)
    ]
    return table(["pairs/s", *(f"{count} client{'s'[: count > 1]}" for count in clients)], rows)


def latency_table(windows: Windows) -> list[str]:
    """Write p50 and p99 of each system by the number of clients."""
    clients = sorted({window["clients"] for window in windows if window["kind"] == "closed"})
    rows = []
    for system in names(windows):
        cells = []
        for count in clients:
            found = of(windows, system, kind="closed", clients=count)
            requests = sum(window["requests"] for window in found)
            cells.append(f"{pooled(found, 0.5):.0f} / {pooled(found, 0.99):.0f} ({requests})")
        rows.append([system, *cells])
    return table(["p50 / p99 ms (requests)", *(f"{count} client{'s'[: count > 1]}" for count in clients)], rows)


def ratio_table(windows: Windows) -> list[str]:
    """Write throughput and p50 of each system against each baseline by the number of clients."""
    clients = sorted({window["clients"] for window in windows if window["kind"] == "closed"})
    baselines = [baseline for baseline in BASELINES if baseline in names(windows)]
    rows = []
    for system in (system for system in names(windows) if system not in baselines):
        for count in clients:
            own = of(windows, system, kind="closed", clients=count)
            cells = [system, str(count)]
            for baseline in baselines:
                other = of(windows, baseline, kind="closed", clients=count)
                cells += [median_and_rounds(ratios(own, other)), median_and_rounds(latency_shares(own, other))]
            rows.append(cells)
    heads = [title for baseline in baselines for title in (f"pairs/s over {baseline}", f"p50 over {baseline}")]
    return table(["system", "clients", *heads], rows)


def load_table(windows: Windows, documents: int) -> list[str]:
    """Write latency of each system by the load offered to it."""
    rows = []
    for system in names(windows):
        for fraction in sorted({window["fraction"] for window in windows if window["kind"] == "open"}):
            found = of(windows, system, kind="open", fraction=fraction)
            if not found:
                continue
            offered = documents * statistics.median(window["offered_requests_per_second"] for window in found)
            requests = sum(window["requests"] for window in found)
            latencies = [f"{pooled(found, share):.0f}" for share in (0.5, 0.99)]
            rows.append([system, f"{fraction:g}", f"{offered:.1f}", *latencies, str(requests)])
    return table(["system", "of its capacity", "pairs/s offered", "p50 ms", "p99 ms", "requests"], rows)


def others(windows: Windows) -> str:
    """Say how much of the machine went to programs that have no part in this."""
    cores = [window["cores_of_others"] for window in windows]
    return f"Other programs took {statistics.median(cores):.2f} cores in the median window and {max(cores):.2f} at most."


def failure_lines(windows: Windows) -> list[str]:
    """Say how many requests failed, and what of."""
    failed = Counter({system: sum(window["failed"] for window in of(windows, system)) for system in names(windows)})
    if not failed.total():
        return [f"None of {sum(window['requests'] for window in windows)} requests failed.", ""]
    lines = [f"Failed requests: {', '.join(f'{system} {count}' for system, count in failed.items() if count)}.", ""]
    for system in failed:
        kinds = sorted({failure for window in of(windows, system) for failure in window["failures"]})
        lines += [f"- {system}: `{kind}`" for kind in kinds[:3]]
    return [*lines, ""]


def system_lines(result: dict[str, Any]) -> list[str]:
    """Say what each system is made of, and how far its scores are from sentence-transformers'."""
    rows = []
    for system, facts in result["systems"].items():
        libraries = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        rows.append([system, libraries, f"{result['greatest_score_differences'][system]:.1e}"])
    return table(["system", "made of", f"greatest difference of a score from {SENTENCE_TRANSFORMERS}'"], rows)


def markdown(result: dict[str, Any], quality: dict[str, Any] | None) -> str:
    """Write the whole report. quality: the raw figures of `make quality`, if there are any."""
    windows, plan = result["windows"], result["plan"]
    lines = [
        "# Beside sentence-transformers and Infinity",
        "",
        sentence(result["provenance"]),
        "",
        (
            f"{plan['rounds']} round{'s'[: plan['rounds'] > 1]}, windows of {plan['seconds']:g} s, {plan['documents']} documents a request, all text new (a pair has about 107 tokens); {result['minutes']} minutes in all. "
            "All systems serve the same weights, the MiniLM-L6 cross-encoder shape with random values, and get the same texts. One server is asked at a time, in turns, while the "
            f"others idle (all of them together took {result['idle_cores_of_all_servers']:g} cores then). {others(windows)} Ratios count. Figures are medians over the rounds; in "
            "parentheses the rounds themselves. p50 and p99 are of all rounds' requests together: of fewer than 100 requests, p99 is the slowest."
        ),
        "",
        (
            f"{SENTENCE_TRANSFORMERS} is `CrossEncoder.predict` as it comes (fp32, batches of 32) in a sync endpoint of FastAPI, whose threads run several requests at a time; {INFINITY} is its Python server on torch "
            "(fp32, batches of 32), without BetterTransformer, which the libraries that it installs no longer have. Neither has more threads or fewer than torch gives it by itself, as the service has."
        ),
        "",
        *system_lines(result),
        "## Throughput by concurrency",
        "",
        "Closed loop: each client sends its next request when it has its answer.",
        "",
        "![pairs/s by the number of clients](compare-throughput.png)",
        "",
        *throughput_table(windows, plan["documents"]),
        *latency_table(windows),
        "## Ratios",
        "",
        *ratio_table(windows),
        "## Latency by load",
        "",
        (
            "Open loop: requests arrive at random (Poisson) at a share of the most that the system answered in the same round's closed loop, and "
            "are sent when due, whatever became of the earlier ones."
        ),
        "",
        "![p50 and p99 by the pairs/s offered](compare-latency.png)",
        "",
        *load_table(windows, plan["documents"]),
        "## Failures",
        "",
        *failure_lines(windows),
        *quality_lines(quality),
        "Raw figures, every latency of every window: [compare.json](compare.json).",
        "",
    ]
    return "\n".join(lines)


def quality_lines(quality: dict[str, Any] | None) -> list[str]:
    """Show the plot of `make quality`'s last report."""
    if quality is None:
        return []
    told = f"From `make quality` at commit {quality['provenance']['commit'][:7]}, {quality['provenance']['date']}: [quality.md](quality.md)."
    return ["## Quality by precision", "", told, "", "![nDCG@10, Kendall tau and memory by precision](quality.png)", ""]


def write_report(folder: Path, result: dict[str, Any]) -> None:
    """Write compare.md and its plots into a folder."""
    from plots import plot_latency, plot_throughput

    path = folder / "quality.json"
    quality = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    (folder / "compare.md").write_text(markdown(result, quality), encoding="utf-8")
    plot_throughput(folder / "compare-throughput.png", result)
    plot_latency(folder / "compare-latency.png", result)
