"""What a model takes in memory and how long a server takes to be ready, in each precision: `make starts`.

Real servers, one after the other in turns, of shapes with random weights. Machines are shared: what counts is the share and the ratio.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests"), str(REPOSITORY / "load")]

from provenance import provenance, sentence, versions  # noqa: E402  the path must be set first
from report_options import add_report_options, command_line  # noqa: E402
from saving import NotSaved, save  # noqa: E402
from servers import Server  # noqa: E402
from shapes import SHAPES, make_source  # noqa: E402
from tables import precision_name, table  # noqa: E402

NAME = "start-model"
LIBRARIES = ("bentoml", "torch", "transformers", "tokenizers", "bitsandbytes")


def start(home: Path, precision: str) -> dict[str, Any]:
    """Start a server, wait for /readyz, let it answer once, and stop it."""
    begin = time.monotonic()
    with Server(home, RERANKER_MODEL=NAME, QUANTIZATION=precision) as server:
        ready = time.monotonic() - begin
        model = server.get("/health").json()["model"]
        (scorer,) = server.workers("Scorer")
        figures = {"ready_seconds": ready, "weight_bytes": model["weight_bytes"], "quantization": model["quantization"]}
        figures["scorer_bytes"] = scorer.memory_info().rss
        server.post(query="q", documents=["a", "b"]).raise_for_status()
    return figures


def measure(shape: str, precisions: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """Start each precision `rounds` times, in turns; one row for each that this machine offers."""
    with tempfile.TemporaryDirectory(prefix="reranker-starts-") as folder:
        home = Path(folder)
        source = make_source(home, shape)
        offered = []
        for precision in precisions:
            try:
                save(home, precision, model=str(source), more=("--name", NAME))
                problem = ""
            except NotSaved as error:
                problem = str(error)
            print(json.dumps({"shape": shape, "precision": precision, "problem": problem}), flush=True)
            offered += [] if problem else [precision]
        runs: dict[str, list[dict[str, Any]]] = {precision: [] for precision in offered}
        for _ in range(rounds):
            for precision in list(runs):
                figures = start(home, precision)
                print(json.dumps({"shape": shape, "precision": precision, **figures}), flush=True)
                if figures["quantization"] == precision:
                    runs[precision].append(figures)
                else:
                    del runs[precision]  # it runs as another here
    return [{"shape": shape, "precision": precision, "starts": starts} for precision, starts in runs.items()]


def markdown(result: dict[str, Any]) -> str:
    """Write the report."""
    full = {row["shape"]: row["starts"][0]["weight_bytes"] for row in result["rows"] if row["precision"] == "none"}
    cells = []
    for row in result["rows"]:
        seconds = [each["ready_seconds"] for each in row["starts"]]
        weights, resident = row["starts"][0]["weight_bytes"], statistics.median(each["scorer_bytes"] for each in row["starts"])
        cells.append(
            [
                row["shape"],
                precision_name(row["precision"]),
                f"{weights / 1e6:.1f}",
                f"{weights / full[row['shape']]:.3f}" if row["shape"] in full else "-",
                f"{resident / 1e6:.0f}",
                f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})",
            ]
        )
    libraries = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    head = ["shape", "precision", "weights, MB", "of fp32", "model worker when ready, MB", "start to ready, s"]
    return "\n".join(
        [
            "# Memory of the weights, and start times",
            "",
            f"{sentence(result['provenance'])} {libraries}. Weights: all that the model holds, embeddings included.",
            "",
            *table(head, cells),
            "Raw figures: `starts.json`.",
            "",
        ]
    )


def main() -> None:
    """Measure, and write the report and its raw figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=3)
    add_report_options(parser)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server ends with this process
    told = provenance(command_line("starts", sys.argv[1:]))
    result = {
        "provenance": told,
        "versions": versions(Path(sys.executable), LIBRARIES),
        "rows": [row for shape in options.shapes for row in measure(shape, options.precisions, options.rounds)],
    }
    options.reports.mkdir(parents=True, exist_ok=True)
    (options.reports / "starts.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (options.reports / "starts.md").write_text(markdown(result), encoding="utf-8")
    print(options.reports / "starts.md")


if __name__ == "__main__":
    main()
