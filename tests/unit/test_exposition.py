"""What is read of all processes: rendered for Prometheus, ages told from times, Scorers counted."""

from __future__ import annotations

import math
import time
from typing import Any, cast

from parts import FakeLink, played
from prometheus_client.parser import text_string_to_metric_families

from bento_service.exposition import CONTENT_TYPE, Exposition, totals
from bento_service.machine import Machine
from bento_service.metrics import EntryMetrics

AGE = ("reranker_queue_age_seconds", ())


async def _families(*links: FakeLink) -> dict[str, Any]:
    text = await Exposition(cast("Any", links), Machine(dict)).text()
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


@played
async def test_the_exposition_is_prometheus_text(entry_metrics: EntryMetrics) -> None:
    """And holds what was counted, and what the machine has."""
    room = entry_metrics
    room.documents.inc(3)
    room.stage("queue", 10.0, 10.02)
    families = await _families()
    [documents] = [sample for sample in families["reranker_documents"].samples if sample.name.endswith("_total")]
    assert documents.value == 3
    counts = [sample for sample in families["reranker_stage_seconds"].samples if sample.name.endswith("_count")]
    assert [(each.labels, each.value) for each in counts] == [({"stage": "queue"}, 1.0)]
    assert families["reranker_memory_limit_bytes"].samples[0].value > 1e6
    assert CONTENT_TYPE.startswith("text/plain")


@played
async def test_scorers_are_counted_as_this_worker_sees_them() -> None:
    """Up, and how many there should be."""
    families = await _families(FakeLink(), FakeLink(up=False), FakeLink())
    assert families["reranker_scorers_up"].samples[0].value == 2
    assert families["reranker_scorers"].samples[0].value == 3


def test_the_queue_s_age_is_that_of_its_oldest_request(entry_metrics: EntryMetrics) -> None:
    """Younger ones come and go without changing it; when it goes, the next one is the oldest; without any it is 0."""
    room = entry_metrics
    room.begin(pairs=10, wait_seconds=2.0)
    assert totals()[AGE] == 0
    before = time.monotonic()
    with room.waiting():
        first, written = time.monotonic(), room.queue_age._value.get()
        with room.waiting():
            assert room.queue_age._value.get() == written
            assert time.monotonic() - first <= totals()[AGE] <= time.monotonic() - before
        assert totals()[AGE] >= time.monotonic() - first - 0.001
        assert totals()["reranker_requests_waiting", ()] == 1
    assert totals()[AGE] == 0
    older, younger = room.waiting(), room.waiting()
    older.__enter__()
    between = time.monotonic()
    younger.__enter__()
    older.__exit__(None, None, None)
    assert totals()[AGE] <= time.monotonic() - between
    younger.__exit__(None, None, None)
    assert totals()[AGE] == 0


def test_counters_are_there_before_they_count(entry_metrics: EntryMetrics) -> None:
    """At 0, or Prometheus would not see the first one; and the bounds of the queue in pairs and seconds."""
    entry_metrics.begin(pairs=10, wait_seconds=2.0)
    samples = totals()
    assert samples["reranker_queue_limit_pairs", ()] == 10
    assert samples["reranker_queue_wait_limit_seconds", ()] == 2.0
    assert samples["reranker_truncated_documents_total", ()] == samples["reranker_requests_active", ()] == 0
    assert not math.isinf(samples[AGE])
