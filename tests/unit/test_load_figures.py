"""The arithmetic of the load tests: figures, thresholds, the knee, growth of memory."""

from __future__ import annotations

import gzip
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import balancer
from arrivals import due_times
from figures import by_second, figures
from load_options import command_line
from memory import growth
from ramp import Bounds, knee, ramp
from rows import Row, write_archive
from soak import full_after
from thresholds import Threshold, broken


def row(due: float, latency: float, status: int = 200, *, late: float = 0.0, misses: int = 2, error: str = "") -> Row:
    """Make a request of two documents."""
    return Row(
        due, due + late, due + latency, status, 2, 2 - misses if misses >= 0 else -1, misses, 0 if misses >= 0 else -1, 0, error
    )


def test_latency_counts_from_when_a_request_was_due() -> None:
    """Not from when it was sent, so a generator or a server that stalls hides nothing."""
    told = figures([row(0.0, 0.1), row(1.0, 3.0, late=2.9)], offered_seconds=2.0)
    assert (told["p50_ms"], told["p99_ms"], told["max_ms"]) == (100, 3000, 3000)
    assert told["late_p99_ms"] == 2900


def test_rates_are_of_the_time_that_it_took() -> None:
    """At least the time for which requests were offered; longer where answers came later."""
    rows = [row(number / 10, 0.05) for number in range(20)]
    told = figures(rows, offered_seconds=2.0)
    assert (told["offered_per_second"], told["answered_per_second"], told["pairs_per_second"]) == (10, 10, 20)
    late = figures([*rows, row(1.99, 2.01)], offered_seconds=2.0)
    assert (late["offered_per_second"], late["answered_per_second"]) == (10.5, 5.25)


def test_requests_that_do_not_count_take_no_time() -> None:
    """A closed loop's time begins with the first request that counts."""
    assert figures([row(10.0, 1.0), row(11.0, 1.0)])["answered_per_second"] == 1


def test_a_rejected_request_is_neither_answered_nor_failed() -> None:
    """Nor has it a latency; anything else than 200 and 429 has failed."""
    told = figures([row(0, 0.1), row(0, 9.0, 429), row(0, 9.0, 503), row(0, 9.0, 0, error="TimeoutError")])
    assert (told["requests"], told["answered"], told["rejected"], told["failed"]) == (4, 1, 1, 2)
    assert told["errors"] == {"503": 1, "TimeoutError": 1}
    assert told["max_ms"] == 100


def test_computed_pairs_are_of_those_that_answers_tell_of() -> None:
    """An answer that does not say is left out."""
    told = figures([row(0, 0.1, misses=2), row(0, 0.1, misses=0), row(0, 0.1, misses=-1)])
    assert (told["pairs"], told["computed"], told["computed_share"]) == (4, 2, 0.5)


def test_nothing_answered_has_no_figures() -> None:
    """And no threshold holds then."""
    told = figures([row(0, 0.1, 503)])
    assert (told["p99_ms"], told["computed_share"]) == (None, None)
    assert figures([])["answered_per_second"] == 0
    assert broken([Threshold("p99", told["p99_ms"], 10, " ms")]) == ["broken: p99: none, asked: at most 10 ms"]


def test_a_run_is_cut_into_slices_by_when_requests_were_due() -> None:
    """Rates a second, percentiles of a slice."""
    slices = by_second([row(0.1, 5.0), row(0.9, 0.1), row(4.5, 0.2, 429)], width=2.0)
    assert slices["seconds"] == [0, 2, 4]
    assert (slices["offered"], slices["answered"], slices["rejected"]) == ([1, 0, 0.5], [1, 0, 0], [0, 0, 0.5])
    assert slices["p99_ms"][0] == 5000
    assert math.isnan(slices["p99_ms"][1])


def test_an_archive_holds_every_request(tmp_path: Path) -> None:
    """The same bytes for the same requests."""
    for name in ("one", "two"):
        write_archive(tmp_path / name, {"a": [row(0.5, 0.25)], "b": [row(1, 1, 429)]})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    lines = gzip.decompress((tmp_path / "one").read_bytes()).decode().splitlines()
    assert lines[1:] == ["a,0.5000,0.5000,0.7500,200,2,0,2,0,0,", "b,1.0000,1.0000,2.0000,429,2,0,2,0,0,"]


@pytest.mark.parametrize(
    ("value", "at_least", "met"), [(5, False, True), (5.01, False, False), (5, True, True), (4.99, True, False)]
)
def test_a_threshold_holds_on_its_bound(value: float, at_least: bool, met: bool) -> None:
    """And says what was measured and what was asked where it does not."""
    threshold = Threshold("rate", value, 5, "/s", at_least=at_least)
    assert threshold.met == met
    asked = f"at {'least' if at_least else 'most'} 5/s"
    assert broken([threshold]) == ([] if met else [f"broken: rate: {value:g}/s, asked: {asked}"])


def test_constant_arrivals_are_evenly_spaced() -> None:
    """Poisson ones are as many, and both begin within the time."""
    assert due_times("constant", per_second=4, seconds=2, seed=1) == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75]
    times = due_times("poisson", per_second=4, seconds=2, seed=1)
    assert len(times) == 8
    assert times == sorted(times) != due_times("poisson", per_second=4, seconds=2, seed=2)
    assert due_times("poisson", per_second=0.01, seconds=1, seed=1)[0] <= 1


def step(level: float, limit: float, **more: object) -> Mapping[str, Any]:
    """Tell what a server of so much capacity would."""
    held = level <= limit
    told = {"p99_ms": 100.0 if held else 900.0, "requests": 100, "answered": 100, "rejected": 0, "failed": 0}
    return told | more


def test_the_knee_is_the_most_that_was_held() -> None:
    """Between the last level that held and the first that did not, once more in the middle."""
    steps = ramp(lambda level: step(level, 5), Bounds(500), first=1, factor=2, most_steps=9)
    assert [each.level for each in steps] == [1, 2, 4, 8, 8, math.sqrt(32), math.sqrt(32)]
    assert knee(steps).level == 4
    assert knee(ramp(lambda level: step(level, 7), Bounds(500), first=1, factor=2, most_steps=9)).level == math.sqrt(32)


def test_a_step_that_breaks_by_chance_is_measured_again() -> None:
    """One slow step is no knee."""
    levels: list[float] = []

    def shaky(level: float) -> Mapping[str, Any]:
        levels.append(level)
        return step(level, 10, **({"p99_ms": 900.0} if levels == [1, 2] else {}))

    assert knee(ramp(shaky, Bounds(500), first=1, factor=2, most_steps=4)).level == 8
    assert levels == [1, 2, 2, 4, 8]


def test_a_first_level_that_is_too_much_is_lowered() -> None:
    """Until one holds; without any there is no knee."""
    steps = ramp(lambda level: step(level, 3), Bounds(500), first=8, factor=2, most_steps=9, refine=0)
    assert [each.level for each in steps] == [8, 8, 4, 4, 2]
    assert knee(steps).level == 2
    steps = ramp(lambda level: step(level, 0), Bounds(500), first=8, factor=2, most_steps=3)
    assert [each.level for each in steps] == [8, 8, 4, 4, 2, 2]
    assert knee(steps) is None


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"p99_ms": 501.0}, "p99 501.0 ms, over 500"),
        ({"p99_ms": None}, "p99 None ms"),
        ({"answered": 94, "rejected": 6}, "94 of 100 requests answered"),
        ({"failed": 1, "answered": 99}, "1 failed"),
    ],
)
def test_a_step_says_what_it_breaks(more: dict[str, Any], said: str) -> None:
    """Requests turned away are missing among the answered ones and are no failures."""
    [found] = Bounds(500).breaks(step(1, 2) | more)
    assert found.startswith(said)


def test_growth_compares_the_end_with_the_end_of_the_warm_in() -> None:
    """A single peak moves nothing, and what grew before the warm-in's end does not count."""
    points = [(float(second), 100 if second < 20 else 200) for second in range(120)]
    assert growth(points, 30) == 0
    assert growth([*points[:60], (60.0, 999), *points[61:]], 30) == 0
    assert growth([(second, 200 + second) for second in range(30, 121)], 30) == pytest.approx(320 / 230 - 1, abs=0.06)
    assert growth(points, 500) is None


def test_a_cache_is_full_when_as_many_pairs_were_computed() -> None:
    """In the order of the answers; known pairs and answers that do not say fill nothing."""
    rows = [row(0, 0.9), row(0, 0.2), row(0, 0.3, misses=0), row(0, 0.4, misses=-1), row(0, 0.5)]
    assert full_after(rows, 4) == 0.5
    assert full_after(rows, 6) == 0.9
    assert full_after(rows, 7) is None


def test_the_balancer_is_the_one_that_deploy_describes() -> None:
    """All servers, its own port, and none of the bounds on one address."""
    text = balancer.config(balancer.CONFIG.read_text(encoding="utf-8"), [7001, 7002, 7003], 8123)
    for line in (
        "server 127.0.0.1:7001 ",
        "server 127.0.0.1:7003 ",
        "listen 127.0.0.1:8123;",
        "least_conn;",
        "http_503 non_idempotent",
    ):
        assert line in text
    assert "limit_" not in text
    with pytest.raises(balancer.BalancerError, match="no line"):
        balancer.config("http { }", [1], 2)


def test_the_command_that_repeats_a_run_names_no_places() -> None:
    """Neither folders nor the server's address."""
    said = ["--url", "http://10.0.0.1:3000", "--queries", "/data/secret/q.txt", "--requests", "5", "--reports", "/var/x"]
    assert command_line("load", said) == 'make load BENCH_ARGS="--queries q.txt --requests 5"'
