"""`make compare`: its plan, and what its report makes of raw figures."""

from __future__ import annotations

from typing import Any

import pytest

import compare
from compare_report import INFINITY, SENTENCE_TRANSFORMERS, label, latency_shares, markdown, of, pairs_per_second, pooled, ratios
from report_options import command_line

OWN = label("bf16")


def closed(system: str, turn: int, rate: float, latencies: list[float], clients: int = 8, failed: int = 0) -> dict[str, Any]:
    """Make a window of the closed loop."""
    return {
        "system": system,
        "round": turn,
        "kind": "closed",
        "clients": clients,
        "requests": len(latencies),
        "requests_per_second": rate,
        "failed": failed,
        "failures": ["503: busy"] * failed,
        "cores_of_others": rate / 10,
        "latencies_ms": latencies,
    }


def opened(system: str, turn: int, offered: float, latencies: list[float]) -> dict[str, Any]:
    """Make a window of the open loop."""
    window = closed(system, turn, offered, latencies)
    return window | {"kind": "open", "clients": None, "fraction": 0.5, "offered_requests_per_second": offered}


@pytest.fixture
def result() -> dict[str, Any]:
    """Two rounds of three systems; one request failed."""
    windows = [
        closed(OWN, 0, 4.0, [100.0, 300.0]),
        closed(SENTENCE_TRANSFORMERS, 0, 1.0, [900.0]),
        closed(INFINITY, 0, 2.0, [400.0, 500.0]),
        closed(OWN, 1, 6.0, [200.0, 400.0]),
        closed(SENTENCE_TRANSFORMERS, 1, 0.0, [], failed=1),
        closed(INFINITY, 1, 2.0, [800.0, 900.0]),
        opened(OWN, 0, 2.0, [110.0]),
        opened(OWN, 1, 3.0, [120.0]),
    ]
    return {
        "provenance": {
            "command": "make compare",
            "commit": "0123456789abcdef",
            "dirty": False,
            "date": "2026-01-02 03:04 UTC",
            "cpu": "a CPU",
            "cores": 2,
            "load_average_before": 0.1,
            "python": "3.11.7",
        },
        "plan": {"rounds": 2, "seconds": 7.0, "documents": 20},
        "systems": {name: {"versions": {"torch": "2"}} for name in (OWN, SENTENCE_TRANSFORMERS, INFINITY)},
        "greatest_score_differences": {OWN: 1e-3, SENTENCE_TRANSFORMERS: 0.0, INFINITY: 1e-7},
        "idle_cores_of_all_servers": 0.02,
        "minutes": 20.0,
        "windows": windows,
    }


def test_throughput_is_the_median_of_the_rounds(result: dict[str, Any]) -> None:
    """In pairs, not requests."""
    assert pairs_per_second(of(result["windows"], OWN, kind="closed"), 20) == 100.0


def test_ratios_are_taken_within_a_round(result: dict[str, Any]) -> None:
    """A round in which the baseline answered nothing has none."""
    own = of(result["windows"], OWN, kind="closed")
    assert ratios(own, of(result["windows"], INFINITY)) == [2.0, 3.0]
    assert latency_shares(own, of(result["windows"], INFINITY)) == [0.25, 0.25]
    assert ratios(own, of(result["windows"], SENTENCE_TRANSFORMERS)) == [4.0]


def test_percentiles_are_of_all_rounds_together(result: dict[str, Any]) -> None:
    """Not the mean of each round's."""
    own = of(result["windows"], OWN, kind="closed")
    assert (pooled(own, 0.5), pooled(own, 0.99)) == (200.0, 400.0)


def test_the_report_shows_figures_ratios_and_failures(result: dict[str, Any]) -> None:
    """Where they come from, too."""
    text = markdown(result, None)
    assert "`make compare` at commit 0123456 on 2026-01-02 03:04 UTC; 2 cores of a CPU" in text
    assert "Other programs took 0.20 cores in the median window and 0.60 at most." in text
    assert "| this service, bf16 | 100.0 |" in text
    assert "| this service, bf16 | 200 / 400 (4) |" in text
    assert (
        "| this service, bf16 | 8 | **2.50** (2.00, 3.00) | **0.25** (0.25, 0.25) | **4.00** (4.00) | **0.11** (0.11) |" in text
    )
    assert "| this service, bf16 | 0.5 | 50.0 | 110 | 120 | 2 |" in text
    assert "Failed requests: sentence-transformers 1." in text
    assert "- sentence-transformers: `503: busy`" in text
    assert "quality.png" not in text


def test_the_report_shows_the_quality_that_was_measured_last(result: dict[str, Any]) -> None:
    """With its own commit and day."""
    text = markdown(result, {"provenance": {"commit": "fedcba9876543210", "date": "2026-01-01 00:00 UTC"}})
    assert "From `make quality` at commit fedcba9, 2026-01-01 00:00 UTC" in text
    assert "quality.png" in text


def test_a_run_without_failures_says_so(result: dict[str, Any]) -> None:
    """With how many requests that is."""
    result["windows"] = [window for window in result["windows"] if not window["failed"]]
    assert "None of 11 requests failed." in markdown(result, None)


def test_changes_that_are_not_committed_are_told(result: dict[str, Any]) -> None:
    """Such figures cannot be repeated from the commit alone."""
    result["provenance"]["dirty"] = True
    assert "at commit 0123456, with changes that are not in it, on" in markdown(result, None)


def test_what_is_said_changes_the_plan() -> None:
    """And nothing else of it."""
    parser = compare.arguments()
    assert compare.chosen_plan(parser.parse_args([])) == compare.FULL
    quick = compare.chosen_plan(parser.parse_args(["--quick", "--clients", "1,2", "--fractions", "0.5"]))
    assert (quick.clients, quick.fractions) == ((1, 2), (0.5,))
    assert (quick.rounds, quick.seconds) == (compare.QUICK.rounds, compare.QUICK.seconds)


def test_the_command_in_the_report_repeats_the_run() -> None:
    """Without the folder of the report."""
    assert command_line("compare", []) == "make compare"
    assert (
        command_line("compare", ["--quick", "--reports", "/somewhere", "--rounds", "2"])
        == 'make compare BENCH_ARGS="--quick --rounds 2"'
    )
