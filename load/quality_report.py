"""`make quality`'s raw figures as markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from provenance import sentence
from tables import precision_name, table


def quality_rows(rows: list[dict[str, Any]]) -> list[list[str]]:
    """One row for each precision and data set."""
    cells = []
    for row in rows:
        for name, figures in row.get("data", {}).items():
            tau = "-" if figures["kendall_tau"] is None else f"{figures['kendall_tau']:.4f}"
            cells.append(
                [
                    name,
                    precision_name(row["precision"]),
                    f"{figures['ndcg10']:.4f}",
                    f"{figures['ndcg10_change']:+.4f}",
                    tau,
                    f"{figures['greatest_score_change']:.5f}",
                    f"{figures['mean_score_change']:.5f}",
                    f"{figures['queries']} ({figures['pairs']})",
                ]
            )
    return sorted(cells, key=lambda row: row[0])


def memory_rows(rows: list[dict[str, Any]]) -> list[list[str]]:
    """One row for each precision."""
    fp32 = rows[0]["weight_bytes"]
    cells = []
    for row in rows:
        if "data" not in row:
            continue
        weights = row["weight_bytes"]
        cells.append(
            [
                precision_name(row["precision"]),
                f"{weights / 1e6:.1f}" if weights else "-",
                f"{weights / fp32:.2f}" if weights and fp32 else "-",
                f"{row['scorer_ready_bytes'] / 1e6:.0f}",
                f"{row['scorer_resident_bytes'] / 1e6:.0f}",
            ]
        )
    return cells


def markdown(result: dict[str, Any]) -> str:
    """Write the whole report."""
    rows = result["precisions"]
    libraries = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        "# Quality and memory by precision",
        "",
        f"{sentence(result['provenance'])} Model: {result['model']}. {libraries}.",
        "",
        (
            "A real server for each precision ranks every query's candidates. nDCG@10 is load/evaluate.py's; Kendall tau-b is a query's ranking against the one in fp32, the mean of all "
            "queries; a score's change is against fp32 on the scale from 0 to 1. The data are not part of the project."
        ),
        "",
        "![nDCG@10, Kendall tau and memory by precision](quality.png)",
        "",
        *table(
            [
                "data",
                "precision",
                "nDCG@10",
                "change",
                "Kendall tau",
                "greatest score change",
                "mean score change",
                "queries (pairs)",
            ],
            quality_rows(rows),
        ),
        *table(
            ["precision", "weights in memory, MB", "of fp32's", "Scorer process, resident MB when ready", "after all data"],
            memory_rows(rows),
        ),
        *[f"Not measured: {precision_name(row['precision'])} ({row['missing']})." for row in rows if "missing" in row],
        "",
        "Raw figures, each query's: [quality.json](quality.json).",
        "",
    ]
    return "\n".join(lines)


def write_report(folder: Path, result: dict[str, Any]) -> None:
    """Write quality.md and its plot into a folder."""
    from plots import plot_quality

    (folder / "quality.md").write_text(markdown(result), encoding="utf-8")
    plot_quality(folder / "quality.png", result)
