"""What each precision costs in quality and takes in memory, on judged data: `make quality DATA="<folder> …"`.

A real server for each precision that the service offers here, one after the other, ranks every query's candidates.
The folders hold what load/evaluate.py reads; their texts go nowhere.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests"), str(REPOSITORY / "load")]

import httpx  # noqa: E402  the path must be set first
from scipy.stats import kendalltau  # noqa: E402

from bento_service.settings import Quantization  # noqa: E402
from evaluate import Judged  # noqa: E402
from provenance import provenance, versions  # noqa: E402
from quality_report import write_report  # noqa: E402
from report_options import add_report_options  # noqa: E402
from saving import NotSaved, save  # noqa: E402
from servers import Server  # noqa: E402

NAME = "quality-model"
REFERENCE: Quantization = "none"
LIBRARIES = ("bentoml", "torch", "transformers", "tokenizers", "scipy")


@dataclass(slots=True)
class Ranked:
    """What a precision made of some judged data. scores: by query, in the order of the candidates · ndcg: by query."""

    scores: dict[str, list[float]] = field(default_factory=dict)
    ndcg: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Measured:
    """One precision. missing: why it could not be measured · weights_bytes: where /health says it."""

    precision: str
    missing: str = ""
    dtype: str = ""
    weights_bytes: int | None = None
    scorer_ready_bytes: int = 0
    scorer_resident_bytes: int = 0
    ranked: dict[str, Ranked] = field(default_factory=dict)


def kendall_tau(reference: Sequence[float], scores: Sequence[float]) -> float | None:
    """Tau-b of two rankings of the same documents; None where one of them puts all in one place."""
    if min(len(set(reference)), len(set(scores))) == 1:
        return None
    return float(kendalltau(reference, scores, variant="b").statistic)


def rank_all(judged: Judged, client: httpx.Client) -> Ranked:
    """Let a server rank every query's candidates."""
    ranked = Ranked()
    for query in judged.candidates:
        results = judged.rank(client, query)
        ranked.scores[query] = [score for _, score in sorted(results)]
        ranked.ndcg[query] = judged.ndcg(query, (place for place, _ in results))
    return ranked


def measure(home: Path, model: str, precision: Quantization, data: Sequence[Judged]) -> Measured:
    """Save a model in a precision, serve it, and rank all data."""
    measured = Measured(precision)
    try:
        save(home, precision, model=model, more=("--name", NAME))
    except NotSaved as error:
        measured.missing = f"not saved: {error}"
        return measured
    with Server(home, RERANKER_MODEL=NAME, QUANTIZATION=precision) as server:
        told = server.get("/health").json()["model"]
        if told["quantization"] != precision:
            measured.missing = told["precision_reason"]
            return measured
        (scorer,) = server.workers("Scorer")
        measured.dtype, measured.weights_bytes = told["dtype"], told.get("weight_bytes")
        measured.scorer_ready_bytes = scorer.memory_info().rss
        with httpx.Client(base_url=server.url, timeout=300) as client:
            measured.ranked = {judged.name: rank_all(judged, client) for judged in data}
        measured.scorer_resident_bytes = scorer.memory_info().rss
    return measured


def against(reference: Ranked, ranked: Ranked) -> dict[str, Any]:
    """Compare a precision with fp32 on the same data: means over the queries, and over all scores."""
    taus = {query: kendall_tau(reference.scores[query], scores) for query, scores in ranked.scores.items()}
    known = [tau for tau in taus.values() if tau is not None]
    changes = [
        abs(score - before)
        for query, scores in ranked.scores.items()
        for score, before in zip(scores, reference.scores[query], strict=True)
    ]
    return {
        "queries": len(ranked.scores),
        "pairs": len(changes),
        "ndcg10": statistics.mean(ranked.ndcg.values()),
        "ndcg10_change": statistics.mean(ranked.ndcg.values()) - statistics.mean(reference.ndcg.values()),
        "kendall_tau": statistics.mean(known) if known else None,
        "queries_without_tau": len(taus) - len(known),
        "greatest_score_change": max(changes),
        "mean_score_change": statistics.mean(changes),
        "by_query": {query: {"ndcg10": ranked.ndcg[query], "kendall_tau": tau} for query, tau in taus.items()},
    }


def row(measured: Measured, reference: Measured) -> dict[str, Any]:
    """Put a precision's figures in a row, or why there are none."""
    if measured.missing:
        return {"precision": measured.precision, "missing": measured.missing}
    return {
        "precision": measured.precision,
        "dtype": measured.dtype,
        "weight_bytes": measured.weights_bytes,
        "scorer_ready_bytes": measured.scorer_ready_bytes,
        "scorer_resident_bytes": measured.scorer_resident_bytes,
        "data": {name: against(reference.ranked[name], ranked) for name, ranked in measured.ranked.items()},
    }


def run(model: str, precisions: Sequence[Quantization], data: Sequence[Judged]) -> list[dict[str, Any]]:
    """Measure fp32, and these precisions against it."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="reranker-quality-") as folder:
        reference = measure(Path(folder), model, REFERENCE, data)
        if reference.missing:
            raise SystemExit(f"error: {reference.missing}")
        for precision in (REFERENCE, *(precision for precision in precisions if precision != REFERENCE)):
            measured = reference if precision == REFERENCE else measure(Path(folder), model, precision, data)
            rows.append(row(measured, reference))
            figures = {name: {**each, "by_query": "…"} for name, each in rows[-1].get("data", {}).items()}
            print(json.dumps(rows[-1] | {"data": figures}, ensure_ascii=False), flush=True)
    return rows


def command(data: Sequence[Judged], model: str, precisions: Sequence[Quantization]) -> str:
    """Spell the command that repeats this run; where folders lie is nobody's business."""
    more = [] if model == "builtin" else ["--model", Path(model).name]
    more += [] if precisions == get_args(Quantization) else ["--precisions", *precisions]
    told = f'make quality DATA="{" ".join(f"<{judged.name}>" for judged in data)}"'
    return told + (f' BENCH_ARGS="{shlex.join(more)}"' if more else "")


def main() -> None:
    """Measure, and write the report and its raw figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of judged data")
    parser.add_argument("--model", default="builtin", help="as model_store_scripts.save_model takes it")
    add_report_options(parser)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server ends with this process
    data = [Judged.read(folder) for folder in options.data]
    told = provenance(command(data, options.model, options.precisions))
    result = {
        "provenance": told,
        "model": Path(options.model).name,
        "versions": versions(Path(sys.executable), LIBRARIES),
        "precisions": run(options.model, options.precisions, data),
    }
    options.reports.mkdir(parents=True, exist_ok=True)
    (options.reports / "quality.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    write_report(options.reports, result)
    print(options.reports / "quality.md")


if __name__ == "__main__":
    main()
