"""Prometheus metrics of all worker processes together.

Made lazily: prometheus_client decides on its multi-process mode when a metric is made, and BentoML sets
PROMETHEUS_MULTIPROC_DIR only in its workers. Every name carries its unit.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import psutil
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from bento_service.settings import run_directory
from bento_service.tally import Tally

CONTENT_TYPE = CONTENT_TYPE_LATEST
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_PAIRS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class EntryMetrics:
    """What an entry worker counts."""

    @cached_property
    def requests(self) -> Counter:
        """By route template, never by raw path: unknown paths would grow memory."""
        return Counter("reranker_requests_total", "Requests answered.", ["route", "status"])

    @cached_property
    def request_seconds(self) -> Histogram:
        """Whole requests, last byte sent included."""
        return Histogram("reranker_request_seconds", "Seconds from request to answer.", ["route"], buckets=_SECONDS)

    @cached_property
    def stage_seconds(self) -> Histogram:
        """The stages of a rerank request."""
        return Histogram("reranker_stage_seconds", "Seconds of a rerank request by stage.", ["stage"], buckets=_SECONDS)

    @cached_property
    def documents(self) -> Counter:
        """Duplicates included."""
        return Counter("reranker_documents_total", "Documents received in rerank requests.")

    @cached_property
    def duplicate_documents(self) -> Counter:
        """Not scored again."""
        return Counter("reranker_duplicate_documents_total", "Documents that repeat another one of their request.")

    @cached_property
    def truncated_documents(self) -> Counter:
        """Cut to the window."""
        return Counter("reranker_truncated_documents_total", "Documents that lost text.")

    @cached_property
    def rejections(self) -> Counter:
        """By error code."""
        return Counter("reranker_rejections_total", "Rerank requests answered with an error.", ["code"])

    @cached_property
    def scorer_calls(self) -> Counter:
        """At most 32 pairs each; scorer=0 is the first model worker."""
        return Counter("reranker_scorer_calls_total", "Calls from entry workers to a Scorer.", ["scorer"])

    @cached_property
    def queued_pairs(self) -> Counter:
        """Long documents count by their windows."""
        return Counter("reranker_queued_pairs_total", "Pairs that took a place in the queue.")

    @cached_property
    def sent_pairs(self) -> Counter:
        """The rest of the queued ones was dropped where it waited."""
        return Counter("reranker_sent_pairs_total", "Pairs that went to a Scorer.")

    @cached_property
    def requests_waiting(self) -> Gauge:
        """None of their pairs is under way yet."""
        return Gauge("reranker_requests_waiting", "Rerank requests that wait for a Scorer.", multiprocess_mode="livesum")

    @cached_property
    def requests_active(self) -> Gauge:
        """At least one call is or was under way."""
        return Gauge("reranker_requests_active", "Rerank requests being scored.", multiprocess_mode="livesum")

    @cached_property
    def draining(self) -> Gauge:
        """1 from SIGTERM on."""
        return Gauge("reranker_draining", "Whether the server is shutting down.", multiprocess_mode="livemax")

    @cached_property
    def cache_hits(self) -> Counter:
        """tier=process or redis."""
        return Counter("reranker_cache_hits_total", "Pairs whose score was known.", ["tier"])

    @cached_property
    def cache_misses(self) -> Counter:
        """Computed for the request that asked."""
        return Counter("reranker_cache_misses_total", "Pairs computed because nobody knew or was computing them.")

    @cached_property
    def shared_pairs(self) -> Counter:
        """scope=process or servers."""
        return Counter("reranker_shared_pairs_total", "Pairs that another request was computing already.", ["scope"])

    @cached_property
    def cache_entries(self) -> Gauge:
        """Over all entry workers."""
        return Gauge("reranker_cache_entries", "Pairs known in the entry workers' memory.", multiprocess_mode="livesum")

    @cached_property
    def cache_evictions(self) -> Counter:
        """reason=full or expired."""
        return Counter("reranker_cache_evictions_total", "Pairs dropped from the entry workers' memory.", ["reason"])

    @cached_property
    def redis_seconds(self) -> Histogram:
        """operation=claim (which looks up), settle (which stores) or renew."""
        return Histogram("reranker_redis_seconds", "Seconds of an answered call to Redis.", ["operation"], buckets=_SECONDS)

    @cached_property
    def redis_errors(self) -> Counter:
        """By kind."""
        return Counter("reranker_redis_errors_total", "Calls to Redis that failed, and writes it refused.", ["kind"])

    @cached_property
    def redis_state(self) -> Gauge:
        """state=closed is in use; open, half_open, read_only."""
        return Gauge(
            "reranker_redis_state", "Entry workers by the state of Redis to them.", ["state"], multiprocess_mode="livesum"
        )


class ScorerMetrics:
    """What a Scorer counts."""

    @cached_property
    def batch_pairs(self) -> Histogram:
        """As BentoML's dispatcher joined them."""
        return Histogram("reranker_batch_pairs", "Pairs in a Scorer batch.", buckets=_PAIRS)

    @cached_property
    def batch_seconds(self) -> Histogram:
        """Forward passes and what surrounds them."""
        return Histogram("reranker_batch_seconds", "Seconds of a Scorer batch.", buckets=_SECONDS)

    @cached_property
    def pairs(self) -> Counter:
        """By outcome: scored, late, failed."""
        return Counter("reranker_pairs_total", "Pairs that reached a Scorer, by outcome.", ["outcome"])

    @cached_property
    def tokens(self) -> Counter:
        """kind=real is text, kind=computed includes padding."""
        return Counter("reranker_tokens_total", "Tokens in forward passes, real or computed.", ["kind"])

    @cached_property
    def forwards(self) -> Counter:
        """Micro-batches."""
        return Counter("reranker_forwards_total", "Forward passes.")

    @cached_property
    def memory_retries(self) -> Counter:
        """Out-of-memory back-offs."""
        return Counter("reranker_memory_retries_total", "Forward passes repeated in halves because memory ran out.")

    @cached_property
    def models(self) -> Gauge:
        """What each model worker runs; asked and quantization differ where it fell back."""
        labels = ["asked", "quantization", "dtype", "device"]
        return Gauge(
            "reranker_model_workers",
            "Model workers by the precision asked for and what runs.",
            labels,
            multiprocess_mode="livesum",
        )

    @cached_property
    def fell_back(self) -> Gauge:
        """An alert may watch this."""
        return Gauge(
            "reranker_quantization_fallbacks",
            "Model workers that cannot run the precision asked for.",
            multiprocess_mode="livesum",
        )

    def loaded(self, *, asked: str, quantization: str, dtype: str, device: str, fell_back: bool) -> None:
        """Say what a model worker runs."""
        self.models.labels(asked, quantization, dtype, device).set(1)
        self.fell_back.set(fell_back)

    def observe(self, tally: Tally) -> None:
        """Count one Scorer batch."""
        self.batch_pairs.observe(tally.pairs)
        self.batch_seconds.observe(tally.forward_seconds)
        self.pairs.labels("scored").inc(tally.pairs - tally.late_pairs - tally.failed_pairs)
        self.pairs.labels("late").inc(tally.late_pairs)
        self.pairs.labels("failed").inc(tally.failed_pairs)
        self.tokens.labels("real").inc(tally.real_tokens)
        self.tokens.labels("computed").inc(tally.computed_tokens)
        self.forwards.inc(tally.forwards)
        self.memory_retries.inc(tally.memory_retries)


def _registry() -> CollectorRegistry:
    """All processes' values where there are several, else this process's."""
    directory = run_directory()
    if directory is None:
        return REGISTRY
    # Gauges of a killed worker would stay in the sums: nothing else takes them out.
    for path in Path(directory).glob("gauge_live*_*.db"):
        pid = int(path.stem.rpartition("_")[2])
        if not psutil.pid_exists(pid):
            mark_process_dead(pid)  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry


def exposition() -> bytes:
    """Render the Prometheus text of all worker processes together."""
    return generate_latest(_registry())


def totals() -> Samples:
    """Read every sample of all worker processes together, by name and sorted labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in _registry().collect()
        for sample in family.samples
    }
