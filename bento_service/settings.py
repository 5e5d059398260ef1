"""Every setting of the service: one frozen class read from the environment.

This is the only room that reads os.environ. A bad value stops the start and names its variable.
The README's table is generated from the descriptions here (`make readme`), and a test holds that.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from bento_service.errors import SettingsError
from bento_service.redis_url import RedisAddress, parse_redis_url

Quantization = Literal["none", "fp16", "bf16", "int8", "nf4"]
AskedQuantization = Literal["auto", "none", "fp16", "bf16", "int8", "nf4"]
Int8Kernel = Literal["auto", "onednn", "bitsandbytes"]

# Kubernetes sets these in every pod for a Service that is called `reranker`.
_KUBERNETES = re.compile(r"RERANKER_(SERVICE_(HOST|PORT)|PORT(_|$))")
_TEN_YEARS_SECONDS = 315_360_000
_SHORTEST_ENDING_SECONDS = 5  # after the drain period: last arrivals, answers, and 4 s for the processes to end
REFUSED: Mapping[str, str] = {
    "ENABLE_TORCH_COMPILE": "has no effect here, because compiled forward passes were no faster (ADR 10): unset it",
    "MICRO_BATCH_WINDOW_MS": "has no effect here, because BentoML adapts the wait by itself: unset it",
}


# OpenMP's threads spin for a fraction of a millisecond before they sleep, unless the operator says otherwise: as fast as
# libgomp's milliseconds where the cores are free, and more than twice as fast where they are not (ADR 4).
# And oneDNN remembers a kernel for each shape it has seen, 1,024 of them in two places: packed batches are hardly ever of one shape, and
# a Scorer of 0.6 GB grew to 1.7 GB within 6,000 pairs; with 32 it stays below 0.8 GB on 2 threads, at the same speed (ADR 12).
# And glibc's allocator keeps what a forward pass frees instead of asking the system for it anew: padded models gain up to 60 % (ADR 10).
# In one arena for all threads: each lane's own would hold what another could use (740 MB, 720 with one, at the same speed).
_SCORER_ENVIRONMENT: Mapping[str, str] = {
    "GOMP_SPINCOUNT": "10000",
    "LRU_CACHE_CAPACITY": "32",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "134217728",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32",
}


def scorer_environment() -> dict[str, str]:
    """Return the variables that a Scorer is started with beside the server's own; the operator's values win."""
    return {name: os.environ.get(name, value) for name, value in _SCORER_ENVIRONMENT.items()}


class Settings(BaseSettings):
    """All settings, frozen once read."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, validate_default=True)

    model: str = Field(
        "all-minilm-l6-v2",
        validation_alias="RERANKER_MODEL",
        description="Tag of the model in the Bento model store (`make model` prints it). Inside a Bento the packed model is the default.",
    )
    quantization: AskedQuantization = Field(
        "auto",
        validation_alias="QUANTIZATION",
        description="Which saved variant of RERANKER_MODEL is served: `none` (full precision), `bf16`, `fp16`, `int8` or `nf4`, or `auto`: the fastest one that "
        "is saved and that this machine multiplies natively (int8 where it keeps its quality bound, then bf16).",
    )
    strict_quantization: bool = Field(
        default=False,
        validation_alias="RERANKER_STRICT_QUANTIZATION",
        description="`true`: the start stops where QUANTIZATION cannot run as asked, for want of a library or of hardware, instead of falling back to what can.",
    )
    int8_kernel: Int8Kernel = Field(
        "auto",
        validation_alias="RERANKER_INT8_KERNEL",
        description="Who multiplies int8: `onednn` (fast on CPUs with VNNI or AMX) or `bitsandbytes` (CUDA, and slowly any CPU). `auto`: onednn on a CPU, "
        "bitsandbytes on CUDA.",
    )
    mixed_precision: bool = Field(
        default=False, validation_alias="ENABLE_MIXED_PRECISION", description="`true` is the same as QUANTIZATION=bf16."
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", validation_alias="RERANKER_DEVICE", description="Where the model runs; `auto` takes CUDA, then MPS, then the CPU."
    )
    max_length: int | None = Field(
        None,
        ge=16,
        validation_alias="RERANKER_MAX_LENGTH",
        description="Tokens of a pair (bi-encoder: of a text), special tokens and a yes/no model's prompt included. Default: the model's own window; more than that stops the start.",
    )
    workers: int = Field(
        1,
        ge=1,
        le=256,
        validation_alias="RERANKER_WORKERS",
        description="Entry worker processes (HTTP, JSON, tokenising). One serves some 300 requests/s; add more when they, not the model, are the limit.",
    )
    scorer_workers: int | None = Field(
        None,
        ge=1,
        le=64,
        validation_alias="RERANKER_SCORER_WORKERS",
        description="Model worker processes, each with its own copy of the weights. Default: one per visible GPU, or one on CPU.",
    )
    torch_threads: int | None = Field(
        None,
        ge=1,
        validation_alias="RERANKER_TORCH_THREADS",
        description="CPU threads of one model worker, each of which computes a part of a batch. Default: torch's own choice shared out among the model workers.",
    )
    tokenizer_workers: int = Field(
        1,
        ge=1,
        le=64,
        validation_alias="TOKENIZER_WORKERS",
        description="Tokenising threads of one entry worker. More than one pays only for big requests on idle cores.",
    )
    micro_batch_enabled: bool = Field(
        default=True,
        validation_alias="MICRO_BATCH_ENABLED",
        description="`false`: pairs of different requests never share a forward pass.",
    )
    micro_batch_max_size: int = Field(
        128,
        ge=2,
        le=8192,
        validation_alias="MICRO_BATCH_MAX_SIZE",
        description="Pairs in a Scorer batch, at most. The batch in use is of about a quarter of a second of work where this many take longer.",
    )
    max_batch_tokens: int | None = Field(
        None,
        ge=64,
        validation_alias="RERANKER_MAX_BATCH_TOKENS",
        description="Tokens of the forward passes that a model worker runs at once, padding included. Default: 4096 on CPU, 65536 on a GPU; halved by itself when memory runs out.",
    )
    request_timeout_seconds: float = Field(
        50.0,
        gt=0,
        le=3600,
        validation_alias="RERANKER_REQUEST_TIMEOUT",
        description="Seconds a request may take; then it is answered with 504 and what is left of its work is dropped.",
    )
    drain_seconds: float = Field(
        5.0,
        ge=0,
        le=3600,
        validation_alias="RERANKER_DRAIN_SECONDS",
        description="Seconds after SIGTERM in which requests are still taken while /readyz says 503: as long as the balancer in front needs to see that "
        "and to send them elsewhere. Ctrl-C skips it.",
    )
    shutdown_seconds: float = Field(
        60.0,
        ge=5,
        le=7200,
        validation_alias="RERANKER_SHUTDOWN_SECONDS",
        description="Seconds after SIGTERM in which the server has ended; requests that are not answered 4 s before that get 503. At least "
        "RERANKER_DRAIN_SECONDS + 5; with RERANKER_REQUEST_TIMEOUT besides, every request has its whole time. Less than whatever kills the process "
        "(Kubernetes: terminationGracePeriodSeconds).",
    )
    max_queue_pairs: int = Field(
        20_000,
        ge=1,
        validation_alias="RERANKER_MAX_QUEUE_PAIRS",
        description="Pairs that may wait or be under way per server, shared out among the entry workers; beyond it: 429 with Retry-After.",
    )
    max_queue_requests: int = Field(
        1000,
        ge=0,
        validation_alias="RERANKER_MAX_QUEUE",
        description="Requests that may wait for a model worker per server, shared out among the entry workers; beyond it: 429 with Retry-After. `0`: "
        "what cannot begin at once is turned away.",
    )
    queue_timeout_seconds: float = Field(
        30.0,
        gt=0,
        le=3600,
        validation_alias="RERANKER_QUEUE_TIMEOUT",
        description="Seconds that a request may wait for a model worker: 429 with Retry-After to who has waited so long, and at once to who would.",
    )
    latency_target_seconds: float | None = Field(
        None,
        gt=0,
        le=3600,
        validation_alias="RERANKER_LATENCY_TARGET",
        description="Seconds from when a request joins the queue to its first scores that shall be kept: it then takes fewer pairs than RERANKER_MAX_QUEUE_PAIRS, as "
        "many as the measured latency allows; beyond them 429. Make it greater than half a second, since a Scorer batch takes a quarter of one. Default: no such limit.",
    )
    max_parallel: int | None = Field(
        None,
        ge=1,
        validation_alias="RERANKER_MAX_PARALLEL",
        description="Requests whose pairs are computed at the same time per server, shared out among the entry workers. Default: no such limit, since "
        "requests take turns, and what is with a model worker is bounded by two of its batches. With one, a request waits for a whole one to end where all places are taken.",
    )
    max_parallel_requests: int | None = Field(
        None,
        ge=1,
        validation_alias="MAX_PARALLEL_REQUESTS",
        description="Another name of RERANKER_MAX_PARALLEL; if both are set and differ, the start stops.",
    )
    max_documents: int = Field(
        1000, ge=1, le=100_000, validation_alias="RERANKER_MAX_DOCUMENTS", description="Documents in one request, at most."
    )
    max_body_bytes: int = Field(
        8 * 1024 * 1024,
        ge=1024,
        validation_alias="RERANKER_MAX_BODY_BYTES",
        description="Bytes of a request body, at most, as sent and as unpacked where it is gzip; beyond it: 413.",
    )
    max_body_memory_bytes: int = Field(
        128 * 1024 * 1024,
        ge=1024,
        validation_alias="RERANKER_MAX_BODY_MEMORY",
        description="Bytes of all bodies that are being read or answered, per server, shared out among the entry workers (each has room for one "
        "body at least). Beyond it, the largest one that is still coming is answered with 429. Text may take four times as much once parsed.",
    )
    body_timeout_seconds: float = Field(
        30.0,
        gt=0,
        le=3600,
        validation_alias="RERANKER_BODY_TIMEOUT",
        description="Seconds from the first byte of a body to its last; then its sender is answered with 408 and cut off.",
    )
    max_document_characters: int = Field(
        1_000_000,
        ge=1,
        validation_alias="RERANKER_MAX_DOCUMENT_CHARACTERS",
        description="Characters of one document or query, at most; beyond it: 400. What the model cannot read of them is cut and reported.",
    )
    max_chunks: int = Field(
        32,
        ge=1,
        le=1024,
        validation_alias="RERANKER_MAX_CHUNKS",
        description="Windows of one document that are scored with `long_documents: chunk`, at most; what lies behind them is reported as cut.",
    )
    api_keys: SecretStr = Field(
        SecretStr(""),
        validation_alias="RERANKER_API_KEYS",
        description="Keys that callers must send, comma-separated: as `Authorization: Bearer KEY` (or the bare KEY), or as `X-API-Key: KEY`. "
        "Without it and RERANKER_API_KEYS_FILE everybody may use the service.",
    )
    api_keys_file: Path | None = Field(
        None,
        validation_alias="RERANKER_API_KEYS_FILE",
        description="A file with further keys, one a line, `#` begins a comment. Read again within a second of a change; one that cannot be read, or "
        "is empty, changes nothing.",
    )
    open_pages: bool = Field(
        default=True,
        validation_alias="RERANKER_OPEN_PAGES",
        description="Whether /, /health, /metrics and /docs.json are open to callers without a key. /livez, /readyz and /healthz always are.",
    )
    max_pairs_per_key: int = Field(
        10_000,
        ge=1,
        validation_alias="RERANKER_MAX_PAIRS_PER_KEY",
        description="Documents that one API key may have in flight per server, cached ones included, shared out among the entry workers; beyond it: "
        "429 with Retry-After. Keep it below RERANKER_MAX_QUEUE_PAIRS, so that no key can fill the queue alone.",
    )
    cors_origins: str = Field(
        "",
        validation_alias="RERANKER_CORS_ORIGINS",
        description="Origins whose pages may call the service from a browser, comma-separated (`https://app.example.com`), or `*`. Default: none.",
    )
    prediction_cache: bool = Field(
        default=True,
        validation_alias="ENABLE_PREDICTION_CACHE",
        description="Whether each entry worker remembers scores in its memory. Without it, requests still share what is being computed.",
    )
    cache_entries: int = Field(
        100_000,
        ge=1,
        validation_alias="RERANKER_CACHE_ENTRIES",
        description="Pairs that one entry worker remembers, at most; the least recently used go first. A pair takes about 0.5 KB.",
    )
    cache_ttl_seconds: float = Field(
        300.0,
        gt=0,
        le=_TEN_YEARS_SECONDS,
        validation_alias="CACHE_TTL_SECONDS",
        description="Seconds after which an entry worker forgets a pair. Scores do not age, so this only frees memory.",
    )
    cache_sweep_seconds: float = Field(
        3600.0,
        gt=0,
        le=_TEN_YEARS_SECONDS,
        validation_alias="CLEAR_CACHE_INTERVAL",
        description="Seconds between sweeps of what has outlived CACHE_TTL_SECONDS in an idle entry worker; each new entry sweeps too.",
    )
    redis_enabled: bool = Field(
        default=False,
        validation_alias="REDIS_ENABLED",
        description="`true`: entry workers and servers share scores, and compute no pair at the same time, through the Redis at REDIS_URL. "
        "If it does not answer, requests go on without it.",
    )
    redis_url: SecretStr = Field(
        SecretStr("redis://localhost:6379/0"),
        validation_alias="REDIS_URL",
        description="`redis://`, `rediss://` (TLS), `unix://`, `redis+sentinel://[[user]:password@]host:port,host:port/service/db` or "
        "`redis+cluster://[[user]:password@]host:port,host:port`. The password is the data servers', not the sentinels'.",
    )
    redis_ttl_seconds: float = Field(
        600.0,
        gt=0,
        le=_TEN_YEARS_SECONDS,
        validation_alias="REDIS_TTL_SECONDS",
        description="Seconds that Redis keeps the pairs of a query, from the first of them on.",
    )
    redis_timeout_seconds: float = Field(
        0.25,
        gt=0,
        le=10,
        validation_alias="RERANKER_REDIS_TIMEOUT",
        description="Seconds that one call to Redis may take, connecting included. Three that fail in a row, and nobody asks it until it "
        "answers again.",
    )
    strict_model: bool = Field(
        default=False,
        validation_alias="RERANKER_STRICT_MODEL",
        description="`true`: a request that names another model is answered with 404 instead of being served.",
    )
    scorer_silence_seconds: float = Field(
        10.0,
        gt=0,
        validation_alias="RERANKER_SCORER_SILENCE_SECONDS",
        description="Seconds without a heartbeat after which a model worker that still runs counts as hung. (One that ended is noticed at once.)",
    )
    liveness_seconds: float = Field(
        60.0,
        gt=0,
        validation_alias="RERANKER_LIVENESS_SECONDS",
        description="Seconds that a model worker or a sibling worker may be gone before /livez fails. Longer than the model takes to load.",
    )

    log_format: Literal["text", "json"] = Field(
        "text",
        validation_alias="RERANKER_LOG_FORMAT",
        description="`json`: one JSON object a line, for a log collector, with the fields of the access log apart. Both formats name the request "
        "(`x-request-id`).",
    )

    @model_validator(mode="after")
    def _mixed_precision_is_bf16(self) -> Self:
        if self.mixed_precision and self.quantization not in ("auto", "none", "bf16"):
            message = f"ENABLE_MIXED_PRECISION=true means QUANTIZATION=bf16 and cannot stand beside QUANTIZATION={self.quantization}: unset one"
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _parallel_is_said_once(self) -> Self:
        both = (self.max_parallel, self.max_parallel_requests)
        if None not in both and both[0] != both[1]:
            raise ValueError("MAX_PARALLEL_REQUESTS is another name of RERANKER_MAX_PARALLEL, and they differ: unset one")
        return self

    @model_validator(mode="after")
    def _every_worker_may_compute(self) -> Self:
        most = self.max_parallel or self.max_parallel_requests
        if most and most < self.workers:
            message = f"RERANKER_MAX_PARALLEL={most} leaves nothing for some of RERANKER_WORKERS={self.workers}: raise it, or have fewer workers"
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _shutdown_outlasts_drain(self) -> Self:
        if self.shutdown_seconds < self.drain_seconds + _SHORTEST_ENDING_SECONDS:
            message = (
                f"RERANKER_SHUTDOWN_SECONDS={self.shutdown_seconds:g} leaves no time after RERANKER_DRAIN_SECONDS={self.drain_seconds:g}: "
                f"make it greater by at least {_SHORTEST_ENDING_SECONDS}"
            )
            raise ValueError(message)
        return self

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, value: SecretStr) -> SecretStr:
        parse_redis_url(value.get_secret_value())
        return value

    @field_validator("api_keys")
    @classmethod
    def _holds_keys(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value() and not _listed(value.get_secret_value()):
            raise ValueError("holds no key: give some, separated by commas, or unset it")
        return value

    @property
    def api_key_list(self) -> list[str]:
        """The keys of RERANKER_API_KEYS."""
        return _listed(self.api_keys.get_secret_value())

    @property
    def cors_origin_list(self) -> list[str]:
        """The origins of RERANKER_CORS_ORIGINS; a slash at the end is none of a browser's."""
        return [origin.rstrip("/") for origin in _listed(self.cors_origins)]

    @property
    def redis_address(self) -> RedisAddress | None:
        """Where Redis is; None without one."""
        return parse_redis_url(self.redis_url.get_secret_value()) if self.redis_enabled else None

    @property
    def local_cache_entries(self) -> int:
        """The size of an entry worker's own cache; 0 switches it off."""
        return self.cache_entries if self.prediction_cache else 0

    @property
    def asked_quantization(self) -> AskedQuantization:
        """What QUANTIZATION and ENABLE_MIXED_PRECISION ask for together."""
        return "bf16" if self.mixed_precision else self.quantization

    @property
    def queue_pairs_per_worker(self) -> int:
        """The share of one entry worker in RERANKER_MAX_QUEUE_PAIRS."""
        return max(1, self.max_queue_pairs // self.workers)

    @property
    def queue_requests_per_worker(self) -> int:
        """The share of one entry worker in RERANKER_MAX_QUEUE; 0 stays 0."""
        return -(-self.max_queue_requests // self.workers)

    def parallel_of_worker(self, index: int) -> int | None:
        """The share of entry worker `index`, from 1 on, in RERANKER_MAX_PARALLEL; None without a limit."""
        most = self.max_parallel or self.max_parallel_requests
        return most and most // self.workers + (index <= most % self.workers)

    @property
    def pairs_per_key_per_worker(self) -> int:
        """The share of one entry worker in RERANKER_MAX_PAIRS_PER_KEY."""
        return max(1, self.max_pairs_per_key // self.workers)

    @property
    def body_memory_bytes_per_worker(self) -> int:
        """The share of one entry worker in RERANKER_MAX_BODY_MEMORY; it has room for one body at least."""
        return max(self.max_body_bytes, self.max_body_memory_bytes // self.workers)

    @property
    def service_timeout_seconds(self) -> float:
        """BentoML's own time-out, a backstop that our deadline always comes before."""
        return self.request_timeout_seconds + 10


def _listed(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def names_model(environ: Mapping[str, str] | None = None) -> bool:
    """Tell whether RERANKER_MODEL is set, which then wins over the model packed into a Bento."""
    return bool((os.environ if environ is None else environ).get("RERANKER_MODEL"))


def run_directory() -> str | None:
    """Return a directory that all processes of one `bentoml serve` share and that starts empty, if there is one."""
    return os.environ.get("PROMETHEUS_MULTIPROC_DIR")


def load_settings() -> Settings:
    """Read the environment.

    Raises SettingsError whose one-line message names the variable and says what to do.
    """
    _refuse_unknown(os.environ)
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        message = str(first["msg"]).removeprefix("Value error, ")
        raise SettingsError(f"{name}: {message}" if name else message) from None


def visible_gpus() -> list[str] | None:
    """Return what CUDA_VISIBLE_DEVICES leaves of the GPUs; None if it does not say."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if visible is None else [device for device in visible.split(",") if device.strip() not in ("", "-1")]


def known_variables() -> list[str]:
    """Every environment variable the service reads, in the order of the table."""
    return [str(field.validation_alias) for field in Settings.model_fields.values()]


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    """Stop on variables that this version does not honour: silence would look like obedience."""
    known = known_variables()
    for name, value in environ.items():
        if not value:
            continue
        if name in REFUSED:
            raise SettingsError(f"{name} {REFUSED[name]}")
        if name.startswith("RERANKER_") and name not in known and not _KUBERNETES.match(name):
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else "the README lists all settings"
            raise SettingsError(f"{name} is not a setting of this service: {hint}")
