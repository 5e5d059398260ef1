"""`make quality`: rankings compared with fp32's, and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest

import quality
from bento_service.settings import Quantization
from evaluate import Judged
from quality import Measured, Ranked, against, kendall_tau, row
from quality_report import markdown

FP32 = Ranked({"1": [0.9, 0.5, 0.1], "2": [0.2, 0.4, 0.6]}, {"1": 0.8, "2": 0.6})
BF16 = Ranked({"1": [0.9, 0.1, 0.5], "2": [0.2, 0.4, 0.7]}, {"1": 0.6, "2": 0.6})


def test_tau_counts_the_documents_that_changed_places() -> None:
    """1 for the same order, -1 for the reverse, a third for one pair of three; ties as tau-b has them."""
    assert kendall_tau([3, 2, 1], [30, 20, 10]) == pytest.approx(1)
    assert kendall_tau([3, 2, 1], [1, 2, 3]) == pytest.approx(-1)
    assert kendall_tau([3, 2, 1], [3, 1, 2]) == pytest.approx(1 / 3)
    assert kendall_tau([3, 2, 1], [3, 1, 1]) == pytest.approx(2 / 6**0.5)
    assert kendall_tau([3, 2, 1], [1, 1, 1]) is None


def test_a_precision_is_compared_with_fp32_query_by_query() -> None:
    """Means over the queries for rankings, over all pairs for scores."""
    figures = against(FP32, BF16)
    assert (figures["queries"], figures["pairs"], figures["queries_without_tau"]) == (2, 6, 0)
    assert figures["ndcg10"] == pytest.approx(0.6)
    assert figures["ndcg10_change"] == pytest.approx(-0.1)
    assert figures["kendall_tau"] == pytest.approx((1 / 3 + 1) / 2)
    assert figures["greatest_score_change"] == pytest.approx(0.4)
    assert figures["mean_score_change"] == pytest.approx(0.9 / 6)
    assert figures["by_query"]["2"] == {"ndcg10": 0.6, "kendall_tau": pytest.approx(1)}


def test_queries_without_an_order_are_counted_and_left_out() -> None:
    """A single document, or the same score for all."""
    figures = against(
        Ranked({"1": [0.5], "2": [0.1, 0.2]}, {"1": 1, "2": 1}), Ranked({"1": [0.5], "2": [0.1, 0.2]}, {"1": 1, "2": 1})
    )
    assert figures["kendall_tau"] == pytest.approx(1)
    assert figures["queries_without_tau"] == 1


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """fp32, bf16, and one that the machine does not offer."""
    reference = Measured("none", "", "float32", 100_000_000, 600_000_000, 700_000_000, {"web": FP32})
    bf16 = Measured("bf16", "", "bfloat16", 50_000_000, 500_000_000, 800_000_000, {"web": BF16})
    return [row(measured, reference) for measured in (reference, bf16, Measured("fp16", "not here"))]


def report(rows: list[dict[str, Any]]) -> str:
    """Write a report of these."""
    told = dict.fromkeys(["command", "commit", "date", "cpu", "cores", "python", "load_average_before"], "x") | {"dirty": False}
    return markdown({"provenance": told, "model": "builtin", "versions": {"torch": "2"}, "precisions": rows})


def test_the_report_shows_quality_and_memory(rows: list[dict[str, Any]]) -> None:
    """And what was not measured, with the reason."""
    text = report(rows)
    assert "| web | fp32 | 0.7000 | +0.0000 | 1.0000 | 0.00000 | 0.00000 | 2 (6) |" in text
    assert "| web | bf16 | 0.6000 | -0.1000 | 0.6667 | 0.40000 | 0.15000 | 2 (6) |" in text
    assert "| bf16 | 50.0 | 0.50 | 500 | 800 |" in text
    assert "Not measured: fp16 (not here)." in text


def test_weights_of_unknown_size_are_a_dash(rows: list[dict[str, Any]]) -> None:
    """Not a zero."""
    for each in rows:
        each["weight_bytes"] = None
    assert "| bf16 | - | - | 500 | 800 |" in report(rows)


def test_scores_are_kept_in_the_order_of_the_candidates(tmp_path: Path) -> None:
    """Whatever order the server ranks them in, which is what nDCG is of."""
    (tmp_path / "queries.tsv").write_text("1\twho\n")
    (tmp_path / "passages.tsv").write_text("a\tann\nb\tbob\nc\tcat\n")
    (tmp_path / "run.trec").write_text("1 Q0 a 1 3 x\n1 Q0 b 2 2 x\n1 Q0 c 3 1 x\n")
    (tmp_path / "qrels.txt").write_text("1 0 c 2\n1 0 b 1\n")
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        results = [{"index": index, "relevance_score": score} for index, score in ((2, 0.9), (0, 0.5), (1, 0.1))]
        return httpx.Response(200, json={"results": results})

    with httpx.Client(transport=httpx.MockTransport(answer), base_url="http://server") as client:
        ranked = quality.rank_all(Judged.read(tmp_path), client)
    assert asked == [{"query": "who", "documents": ["ann", "bob", "cat"]}]
    assert ranked.scores == {"1": [0.5, 0.1, 0.9]}
    assert ranked.ndcg["1"] == pytest.approx((2 + 1 / 2) / (2 + 1 / 1.584962500721156))


def test_the_command_in_the_report_repeats_the_run() -> None:
    """With the names of the data, not their places."""
    data = [Judged("web", {}, {}, {}, {}), Judged("news", {}, {}, {}, {})]
    every = get_args(Quantization)
    assert quality.command(data, "builtin", every) == 'make quality DATA="<web> <news>"'
    assert (
        quality.command(data[:1], "/models/mine", ["bf16"])
        == 'make quality DATA="<web>" BENCH_ARGS="--model mine --precisions bf16"'
    )
