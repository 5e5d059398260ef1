"""What the processes of a server count, and under which names.

Made lazily: prometheus_client decides on its multi-process mode when a metric is made, and BentoML sets
PROMETHEUS_MULTIPROC_DIR only in its workers. Every name carries its unit. exposition.py reads them, of all processes together.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from functools import cache, cached_property

from prometheus_client import Counter, Gauge, Histogram

from bento_service.model_info import ModelInfo
from bento_service.tally import Tally

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_PAIRS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TOKENS = (64, 256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576)
OnStage = Callable[[str, float, float], None]


class EntryMetrics:
    """What an entry worker counts. on_stage: told of each stage of a request with its begin and end, on time.monotonic()."""

    def __init__(self) -> None:
        self.on_stage: OnStage | None = None
        self._waiting_since: dict[object, float] = {}

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
        """parse, cache, tokenize, queue, batch_wait, forward, rank; score is what lies between tokenize and rank."""
        return Histogram("reranker_stage_seconds", "Seconds of a rerank request by stage.", ["stage"], buckets=_SECONDS)

    @cached_property
    def requests_in_flight(self) -> Gauge:
        """From their first byte to their answer's last, refused ones included."""
        return Gauge("reranker_requests_in_flight", "Rerank and score requests being answered.", multiprocess_mode="livesum")

    @cached_property
    def queue_pairs(self) -> Gauge:
        """Waiting and under way."""
        return Gauge("reranker_queue_pairs", "Pairs that hold a place in the queue.", multiprocess_mode="livesum")

    @cached_property
    def queue_limit_pairs(self) -> Gauge:
        """RERANKER_MAX_QUEUE_PAIRS as it was shared out, or what the latency allows of it."""
        return Gauge("reranker_queue_limit_pairs", "Pairs that the queue has room for.", multiprocess_mode="livesum")

    @cached_property
    def queue_age(self) -> Gauge:
        """Each worker writes when its oldest one came (time.monotonic(), infinite without one); its age is told when it is read."""
        return Gauge(
            "reranker_queue_age_seconds", "Seconds that the oldest waiting request has waited.", multiprocess_mode="livemin"
        )

    @cached_property
    def queue_wait_limit(self) -> Gauge:
        """RERANKER_QUEUE_TIMEOUT."""
        return Gauge("reranker_queue_wait_limit_seconds", "Seconds that a request may wait.", multiprocess_mode="livemax")

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

    def stage(self, name: str, begun: float, ended: float | None = None) -> None:
        """Count a stage of a request; begun, ended: on time.monotonic(), ended is now unless it is said."""
        ended = time.monotonic() if ended is None else ended
        self._stages(name).observe(max(0.0, ended - begun))
        if self.on_stage:
            self.on_stage(name, begun, ended)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request that has been answered."""
        self._requests(route, str(status)).inc()
        self._request_seconds(route).observe(seconds)

    # To look a label's counter up takes longer than to count in it.
    @cached_property
    def _stages(self) -> Callable[[str], Histogram]:
        return cache(self.stage_seconds.labels)

    @cached_property
    def _requests(self) -> Callable[[str, str], Counter]:
        return cache(self.requests.labels)

    @cached_property
    def _request_seconds(self) -> Callable[[str], Histogram]:
        return cache(self.request_seconds.labels)

    def begin(self, *, pairs: int, wait_seconds: float) -> None:
        """Show every counter from now on, at 0 if need be, and how much of the queue there is."""
        for name, each in vars(type(self)).items():
            if isinstance(each, cached_property):
                getattr(self, name)
        self.queue_limit_pairs.set(pairs)
        self.queue_wait_limit.set(wait_seconds)
        self.queue_age.set(math.inf)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count a request as waiting meanwhile, and remember since when."""
        me, since = object(), time.monotonic()
        self._waiting_since[me] = since
        if len(self._waiting_since) == 1:
            self.queue_age.set(since)
        try:
            with self.requests_waiting.track_inprogress():
                yield
        finally:
            was_oldest = next(iter(self._waiting_since)) is me
            del self._waiting_since[me]
            if was_oldest:
                self.queue_age.set(next(iter(self._waiting_since.values()), math.inf))


class ScorerMetrics:
    """What a Scorer counts."""

    @cached_property
    def batch_pairs(self) -> Histogram:
        """As BentoML's dispatcher joined them."""
        return Histogram("reranker_batch_pairs", "Pairs in a Scorer batch.", buckets=_PAIRS)

    @cached_property
    def batch_tokens(self) -> Histogram:
        """Text, without padding."""
        return Histogram("reranker_batch_tokens", "Tokens in a Scorer batch.", buckets=_TOKENS)

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

    @cached_property
    def model_info(self) -> Gauge:
        """Always 1, however many workers: what is asked of it are its labels."""
        labels = ["tag", "kind", "source", "revision", "quantization", "dtype", "device", "fingerprint"]
        return Gauge("reranker_model_info", "The model that is served.", labels, multiprocess_mode="livemax")

    def loaded(
        self,
        *,
        tag: str,
        info: ModelInfo,
        asked: str,
        quantization: str,
        dtype: str,
        device: str,
        fell_back: bool,
        fingerprint: str,
    ) -> None:
        """Say what a model worker runs."""
        self.models.labels(asked, quantization, dtype, device).set(1)
        self.fell_back.set(fell_back)
        self.model_info.labels(tag, info.kind, info.source, info.revision, quantization, dtype, device, fingerprint).set(1)

    def observe(self, tally: Tally) -> None:
        """Count one Scorer batch."""
        self.batch_pairs.observe(tally.pairs)
        self.batch_tokens.observe(tally.real_tokens)
        self.batch_seconds.observe(tally.forward_seconds)
        self.pairs.labels("scored").inc(tally.pairs - tally.late_pairs - tally.failed_pairs)
        self.pairs.labels("late").inc(tally.late_pairs)
        self.pairs.labels("failed").inc(tally.failed_pairs)
        self.tokens.labels("real").inc(tally.real_tokens)
        self.tokens.labels("computed").inc(tally.computed_tokens)
        self.forwards.inc(tally.forwards)
        self.memory_retries.inc(tally.memory_retries)
