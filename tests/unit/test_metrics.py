"""Metrics: what is counted, how it is named, and that several processes count together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from parts import metric_names
from prometheus_client import REGISTRY

from bento_service import metrics
from bento_service.exposition import totals
from bento_service.metrics import EntryMetrics, ScorerMetrics
from bento_service.tally import Tally

REPOSITORY = Path(metrics.__file__).parents[1]
UNITS = (
    "_total",
    "_seconds",
    "_pairs",
    "_tokens",
    "_waiting",
    "_active",
    "_in_flight",
    "_entries",
    "_state",
    "_workers",
    "_fallbacks",
    "_info",
    "_draining",
)


@pytest.fixture(autouse=True)
def _registry_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty prometheus_client's one registry for a test, so that it can make the service's metrics once more."""
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    monkeypatch.setattr(REGISTRY, "_collector_to_names", {})
    monkeypatch.setattr(REGISTRY, "_names_to_collectors", {})


def _touch(room: EntryMetrics | ScorerMetrics) -> list[str]:
    """Make every metric of a room."""
    names = metric_names(type(room))
    for name in names:
        getattr(room, name)
    return names


def test_no_metric_is_made_before_it_is_used() -> None:
    """BentoML sets the multi-process folder only in its workers."""
    EntryMetrics()
    ScorerMetrics()
    assert not REGISTRY._names_to_collectors


def test_entry_and_scorer_share_a_registry_without_clashing() -> None:
    """Each metric is made once and has a name of its own, with the service's prefix and its unit."""
    made = _touch(EntryMetrics()) + _touch(ScorerMetrics())
    families = list(REGISTRY.collect())
    assert len(families) == len(made) >= 16
    for family in families:
        assert family.name.startswith("reranker_")
        assert family.documentation.endswith(".")
        assert (family.name + "_total" * (family.type == "counter")).endswith(UNITS)


def test_a_batch_is_counted_by_what_became_of_its_pairs() -> None:
    """Scored is what is neither late nor failed."""
    tally = Tally(
        pairs=10,
        late_pairs=2,
        failed_pairs=1,
        real_tokens=100,
        computed_tokens=130,
        forwards=3,
        memory_retries=4,
        forward_seconds=0.3,
    )
    room = ScorerMetrics()
    room.observe(tally)
    room.observe(tally)
    samples = totals()
    outcomes = {name: samples["reranker_pairs_total", (("outcome", name),)] for name in ("scored", "late", "failed")}
    assert outcomes == {"scored": 14, "late": 4, "failed": 2}
    assert samples["reranker_tokens_total", (("kind", "real"),)] == 200
    assert samples["reranker_tokens_total", (("kind", "computed"),)] == 260
    assert samples["reranker_forwards_total", ()] == 6
    assert samples["reranker_memory_retries_total", ()] == 8
    assert (samples["reranker_batch_pairs_count", ()], samples["reranker_batch_pairs_sum", ()]) == (2, 20)
    assert samples["reranker_batch_seconds_sum", ()] == pytest.approx(0.6)


def test_totals_are_found_whatever_the_order_of_labels() -> None:
    """Labels are sorted by name."""
    EntryMetrics().requests.labels(status="200", route="/rerank").inc()
    assert totals()["reranker_requests_total", (("route", "/rerank"), ("status", "200"))] == 1


def _process(folder: Path, script: str) -> str:
    """Run a script as a process of a server whose metrics lie in `folder`."""
    done = subprocess.run(
        [sys.executable, "-c", f"from bento_service.metrics import *\nfrom bento_service.exposition import *\n{script}"],
        cwd=REPOSITORY,
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return done.stdout


def test_all_processes_of_a_server_count_together(tmp_path: Path) -> None:
    """Counters and histograms of processes that ended stay in the sums."""
    for number in (1, 2):
        _process(tmp_path, f"m = EntryMetrics(); m.documents.inc({number}); m.stage_seconds.labels('queue').observe(0.5)")
    read = "t = totals(); print(t['reranker_documents_total', ()], t['reranker_stage_seconds_count', (('stage', 'queue'),)])"
    assert _process(tmp_path, read).split() == ["3.0", "2.0"]


def test_a_killed_worker_s_requests_are_no_longer_active(tmp_path: Path) -> None:
    """What it was doing is over, whether or not it could say so; what a live process does still counts."""
    _process(tmp_path, "import os; EntryMetrics().requests_active.inc(5); os._exit(0)")
    read = "EntryMetrics().requests_active.inc(2); print(totals()['reranker_requests_active', ()])"
    assert _process(tmp_path, read).split() == ["2.0"]
