"""The two BentoML services: wiring, lifecycle, readiness. No logic, and no other room imports bentoml.

Entry: Reranker (HTTP, tokenising, ranking; no torch). Behind it one Scorer service per model worker, because
workers of one service share a listening socket, which spreads calls unevenly and hides which one died.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import logging
import os
import signal
import time
from pathlib import Path
from typing import Any, NoReturn

import aiohttp
import bentoml
import psutil
import pynvml
from _bentoml_sdk import Service
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml.exceptions import BentoMLConfigException, NotFound
from pydantic import ConfigDict, Field, create_model
from starlette.requests import Request

from bento_service.admission import Admission
from bento_service.dialects import NATIVE
from bento_service.edge import Edge
from bento_service.errors import ModelError, RerankerError
from bento_service.health import Health
from bento_service.metrics import EntryMetrics, ScorerMetrics
from bento_service.model_info import ModelInfo, check_files
from bento_service.openapi import ANSWER
from bento_service.pipeline import Pipeline
from bento_service.routes import Routes, make_app
from bento_service.schemas import ObjectRequest
from bento_service.scorer_link import ScorerClient, ScorerLink, ScorerStatus
from bento_service.settings import Settings, load_settings, names_model, run_directory, visible_gpus
from bento_service.store import command_that_saves, packed_tag, wanted_tag
from bento_service.tokenizer import PairTokenizer

logger = logging.getLogger("bentoml.reranker")

_NEVER = 10**9  # BentoML's proxy drops the calls in flight whenever it renews its session, so it never does
_NO_DROP_MS = 3_600_000  # the dispatcher drops what it predicts to take longer; shedding load is admission's work
_FAILED_FILE = "scorer.failed"
_WORKER_MODULE = "_bentoml_impl.worker.service"


def _stored(tag: str) -> Any:
    """Find a model in the store; None if it is not there."""
    try:
        return bentoml.models.get(tag)
    except NotFound:
        return None
    except Exception:  # noqa: BLE001  BentoML raises as many kinds as there are ways to damage its model.yaml
        raise ModelError(
            f"the store holds a half-written {tag}: delete it (`bentoml models delete {tag}`) and save it again"
        ) from None


def _resolve(settings: Settings) -> tuple[Any, ModelInfo]:
    """Find the model to serve and what is known about it; BentoMLConfigException with one clear line otherwise."""
    packed = packed_tag(Path(__file__).resolve().parents[1])
    tag = packed if packed and not names_model() else wanted_tag(settings)
    stored = _stored(tag)
    if stored is None:
        base = _stored(settings.model)
        source = base.info.metadata.get("source") if base else None
        command = command_that_saves(settings, source)
        raise BentoMLConfigException(f"model {tag} is not in the Bento model store: save it with `{command}`")
    info = ModelInfo.from_metadata(stored.info.metadata, str(stored.tag))
    asked = settings.asked_quantization
    if asked in ("fp16", "bf16") and info.quantization != asked:
        raise BentoMLConfigException(
            f"QUANTIZATION={asked}, but model {stored.tag} is saved as {info.quantization}: unset QUANTIZATION"
        )
    return stored, info


def _gpu_count() -> int:
    """Count the GPUs a worker may use without importing torch; 0 where there is no driver."""
    visible = visible_gpus()
    if visible is not None:
        return len(visible)
    try:
        pynvml.nvmlInit()
        try:
            return int(pynvml.nvmlDeviceGetCount())
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return 0


try:
    SETTINGS = load_settings()
    _STORED, INFO = _resolve(SETTINGS)
except RerankerError as failure:
    raise BentoMLConfigException(str(failure)) from None
TAG = str(_STORED.tag)
SCORER_COUNT = SETTINGS.scorer_workers or (max(1, _gpu_count()) if SETTINGS.device in ("auto", "cuda") else 1)
_ENTRY_METRICS = EntryMetrics()
_SCORER_METRICS = ScorerMetrics()


def _scorer_service(index: int) -> Any:
    """Make the service of model worker `index`."""

    class Scorer:
        """Scores packed pairs; BentoML's adaptive batching joins the calls of all entry workers."""

        model = bentoml.models.BentoModel(TAG)

        def __init__(self) -> None:
            ready = Path(run_directory() or "", f"scorer-{index}.ready") if run_directory() else None
            try:
                # Imported here: the entry service imports this file too, and holds no torch.
                loading = importlib.import_module("bento_service.scorer.loading")
                self._loaded = loading.load_scorer(Path(self.model.path), INFO, SETTINGS, index=index, siblings=SCORER_COUNT)
            except Exception as error:
                if bentoml.server_context.worker_index is None:
                    raise
                _give_up(error, first_start=ready is not None and not ready.exists())
            if ready is not None:
                ready.touch()

        @bentoml.api(batchable=True, batch_dim=0, max_batch_size=SETTINGS.micro_batch_max_size, max_latency_ms=_NO_DROP_MS)
        def score(self, pairs: list[bytes]) -> list[bytes]:
            """Score packed pairs (pairs.TokenPair), one packed score (pairs.PairScore) for each, in order."""
            scores, tally = self._loaded.engine.score(pairs)
            _SCORER_METRICS.observe(tally)
            return scores  # type: ignore[no-any-return]

        @bentoml.api
        async def heartbeat(self) -> dict[str, Any]:
            """Say who and how fast this model worker is (scorer_link.ScorerStatus)."""
            loaded = self._loaded
            return {
                "pid": os.getpid(),
                "device": str(loaded.device),
                "dtype": str(loaded.precision.dtype).removeprefix("torch."),
                "quantization": loaded.precision.effective,
                "precision_reason": loaded.precision.reason,
                "fingerprint": loaded.fingerprint,
                "max_length": loaded.max_length,
                "batch_pairs": min(loaded.engine.batch_pairs, SETTINGS.micro_batch_max_size),
                "pairs_per_second": loaded.engine.pairs_per_second,
            }

    return bentoml.service(
        name="Scorer" if index == 0 else f"Scorer{index + 1}",
        workers=1,
        threads=1,
        traffic={"timeout": SETTINGS.service_timeout_seconds},
        runner_connection={"max_requests": _NEVER, "max_age": float(_NEVER)},
        metrics={"enabled": False},
        logging={"access": {"enabled": False}},
    )(Scorer)


def _give_up(error: Exception, *, first_start: bool) -> NoReturn:
    """End a model worker that cannot start, in one line; on the first start end the server too, or circus would try for ever."""
    known = isinstance(error, RerankerError)
    logger.critical("the model cannot be served: %s", error if known else f"{type(error).__name__}: {error}", exc_info=not known)
    if first_start:
        Path(run_directory() or "", _FAILED_FILE).touch()
        os.kill(os.getppid(), signal.SIGTERM)
    os._exit(1)


class _Client:
    """A Scorer behind bentoml.depends, its errors in our words."""

    def __init__(self, dependency: Any) -> None:
        self._dependency = dependency

    async def score(self, pairs: list[bytes]) -> list[bytes]:
        """Call the batchable API."""
        try:
            return await self._dependency.to_async.score(pairs=pairs)  # type: ignore[no-any-return]
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
            raise ConnectionError(str(error)) from error

    async def heartbeat(self) -> ScorerStatus:
        """Call the heartbeat API."""
        try:
            return ScorerStatus(**await self._dependency.to_async.heartbeat())
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
            raise ConnectionError(str(error)) from error


class _RawInput(bentoml.IODescriptor):
    """Documents the fields for BentoML's clients, but hands the request over unread.

    BentoML's own parsing would answer with bodies of its own and log the caller's text.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> Any:  # noqa: ARG003  BentoML's signature
        """Carry the request itself in `query`; Reranker.rerank reads it."""
        return cls.model_construct(**{**dict.fromkeys(cls.model_fields), "query": request})


_ANNOTATIONS = {"query": str, "documents": list[str | dict[str, Any]]}
RerankInput: Any = create_model(  # type: ignore[call-overload]
    "RerankInput",
    __base__=_RawInput,
    **{
        name: (
            _ANNOTATIONS.get(name, field.annotation),
            Field(... if field.is_required() else field.default, description=field.description),
        )
        for name, field in ObjectRequest.model_fields.items()
    },
)
RerankOutput: Any = create_model(  # type: ignore[call-overload]
    "RerankOutput",
    __base__=bentoml.IODescriptor,
    **{name: (Any, Field(None, description=schema.get("description"))) for name, schema in ANSWER["properties"].items()},
)


class _Reranker:
    """Reranks documents for a query: POST /rerank, POST /v2/rerank."""

    model = bentoml.models.BentoModel(TAG)

    def __init__(self) -> None:
        folder = Path(self.model.path)
        max_length = SETTINGS.max_length or INFO.max_length
        self._tokenizer = PairTokenizer(
            folder / "tokenizer.json", INFO, max_length=max_length, workers=SETTINGS.tokenizer_workers
        )
        golden = INFO.golden[0]
        [warm_up] = self._tokenizer.encode_now(golden.query, [golden.document], None, time.monotonic() + _NEVER, 0)
        self._links = [
            ScorerLink(client, warm_up=warm_up.tokens.pack(), silence_seconds=SETTINGS.scorer_silence_seconds)
            for client in self._clients()
        ]
        admission = Admission(
            self._links,
            entry_workers=SETTINGS.workers,
            max_queue_pairs=SETTINGS.queue_pairs_per_worker,
            metrics=_ENTRY_METRICS,
        )
        for link in self._links:
            link.on_change = admission.wake
        pipeline = Pipeline(
            info=INFO,
            model_name=TAG,
            tokenizer=self._tokenizer,
            admission=admission,
            metrics=_ENTRY_METRICS,
            strict_model=SETTINGS.strict_model,
        )
        health = Health(tag=TAG, info=INFO, links=self._links, settings=SETTINGS)
        self.routes = Routes(pipeline=pipeline, health=health, entry_metrics=_ENTRY_METRICS, settings=SETTINGS)
        self._siblings_seen = time.monotonic()

    def _clients(self) -> list[ScorerClient]:
        return [_Client(getattr(self, f"scorer_{index}")) for index in range(SCORER_COUNT)]

    @bentoml.on_deployment  # makes it a static method
    def check() -> None:
        """Run once in the parent before any worker starts: what is cheap to check stops the start here."""
        atexit.register(_exit_as_the_scorer_did)
        try:
            check_files(Path(_STORED.path), INFO, TAG)
            if SETTINGS.max_length and SETTINGS.max_length > INFO.max_length:
                raise BentoMLConfigException(
                    f"RERANKER_MAX_LENGTH={SETTINGS.max_length} is over the model's window of {INFO.max_length} tokens: lower or unset it"
                )
        except RerankerError as error:
            raise BentoMLConfigException(str(error)) from None

    @bentoml.on_startup
    async def start(self) -> None:
        """Begin to watch the Scorers."""
        _CURRENT["routes"] = self.routes
        for link in self._links:
            link.start()

    @bentoml.on_shutdown
    async def stop(self) -> None:
        """End what start() began."""
        for link in self._links:
            await link.stop()
        self._tokenizer.close()

    @bentoml.api(route="/rerank", input_spec=RerankInput, output_spec=RerankOutput)
    async def rerank(self, query: Any, **fields: Any) -> Any:
        """Sort documents by how well they answer the query, best first."""
        if isinstance(query, Request):
            return await self.routes.rerank(query, NATIVE)
        given = {name: value for name, value in fields.items() if value is not None}
        return await self.routes.answer({"query": query, **given}, NATIVE, time.perf_counter())

    async def __is_ready__(self) -> bool:
        """/readyz: a Scorer answers and is warm."""
        return any(link.up for link in self._links)

    async def __is_alive__(self) -> bool:
        """/livez: no worker process has been gone for longer than RERANKER_LIVENESS_SECONDS."""
        now = time.monotonic()
        if _all_siblings_run():
            self._siblings_seen = now
        gone = max(now - self._siblings_seen, *(link.gone_seconds for link in self._links))
        return gone <= SETTINGS.liveness_seconds


def _all_siblings_run() -> bool:
    """Tell whether the parent has as many worker processes as it should; true where there is no parent."""
    if bentoml.server_context.worker_index is None:
        return True
    running = 0
    for child in psutil.Process(os.getppid()).children():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            running += child.status() != psutil.STATUS_ZOMBIE and _WORKER_MODULE in child.cmdline()
    return running >= SETTINGS.workers + SCORER_COUNT


def _exit_as_the_scorer_did() -> None:
    """Give `bentoml serve` a non-zero exit code when a Scorer's first start failed: circus itself would exit 0."""
    if Path(BentoMLContainer.prometheus_multiproc_dir.get(), _FAILED_FILE).exists():
        os._exit(1)


class _PinnedService(Service[Any]):
    """A Bento knows the Scorers it was built with; it may be served with another number of them."""

    def on_load_bento(self, bento: Any) -> None:
        """Tell every service its Bento; the model tags are pinned already."""
        for service in self.all_services().values():
            service.bento = bento


_CURRENT: dict[str, Routes] = {}
SCORERS = [_scorer_service(index) for index in range(SCORER_COUNT)]
for _index, _scorer in enumerate(SCORERS):
    setattr(_Reranker, f"scorer_{_index}", bentoml.depends(_scorer))

Reranker: Any = bentoml.service(
    name="Reranker",
    service_class=_PinnedService,
    workers=SETTINGS.workers,
    traffic={"timeout": SETTINGS.service_timeout_seconds},
    runner_probe={"enabled": False},
    metrics={"enabled": False},
)(bentoml.asgi_app(make_app(lambda: _CURRENT["routes"]), path="/")(_Reranker))
Reranker.add_asgi_middleware(Edge, metrics=_ENTRY_METRICS)
