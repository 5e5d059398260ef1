"""The entry service: HTTP, tokenising, ranking; no torch."""

from __future__ import annotations

import asyncio
import atexit
import gc
import time
from typing import Any

import bentoml
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request

from bento_service.admission import Admission, Bounds
from bento_service.cache.connection import Connection
from bento_service.cache.housekeeping import Housekeeping
from bento_service.cache.local import LocalCache
from bento_service.cache.shared import SharedCache
from bento_service.catalog import Catalog
from bento_service.dedup import Deduplication
from bento_service.drain import Drain
from bento_service.edge import Edge
from bento_service.exposition import Exposition
from bento_service.health import Health
from bento_service.machine import Machine
from bento_service.metrics import EntryMetrics
from bento_service.pipeline import Pipeline
from bento_service.quota import Quota
from bento_service.routes import EXPOSED_HEADERS, Routes, make_app, native_or_tei
from bento_service.scorer_link import ScorerClient, ScorerLink
from bento_service.service.bento_io import RerankInput, RerankOutput
from bento_service.service.http_server import read_by_h11
from bento_service.service.premises import check_disk, check_port
from bento_service.service.scorer import RemoteScorer, scorer_service
from bento_service.service.shutdown import bound_shutdown, drain_on_signals
from bento_service.service.startup import (
    API_KEYS,
    INFO,
    SCORER_COUNT,
    SETTINGS,
    STORED,
    TAG,
    all_entries_were_ready,
    check_keys,
    check_model,
    exit_as_the_scorer_did,
    make_tokenizer,
    mark_entry_ready,
    warm_up_pair,
)
from bento_service.service.tracing import SparingService, stage_spans
from bento_service.service.workers import ENTRY, Headcount, Workers

check_port()
read_by_h11()

_POLL_SECONDS = 0.02
_WORKERS = Workers()
_ENTRY_METRICS = EntryMetrics()
_CURRENT: dict[str, Routes] = {}
_DRAIN = Drain(
    drain_seconds=SETTINGS.drain_seconds,
    shutdown_seconds=SETTINGS.shutdown_seconds,
    on_begin=lambda: _ENTRY_METRICS.draining.set(1),
)


class _Reranker:
    """Reranks documents for a query: POST /rerank, and every other reranker's routes (routes.py)."""

    model = bentoml.models.BentoModel(TAG)

    def __init__(self) -> None:
        self._tokenizer = make_tokenizer()
        warm_up = warm_up_pair(self._tokenizer)
        self._links = [
            ScorerLink(
                client,
                warm_up=warm_up,
                silence_seconds=SETTINGS.scorer_silence_seconds,
                # No caller waits for longer than this, so a batch that outlasts it serves nobody.
                hang_seconds=SETTINGS.request_timeout_seconds,
            )
            for client in self._clients()
        ]
        admission = Admission(
            self._links,
            entry_workers=SETTINGS.workers,
            bounds=Bounds(
                pairs=SETTINGS.queue_pairs_per_worker,
                requests=SETTINGS.queue_requests_per_worker,
                parallel=SETTINGS.parallel_of_worker(bentoml.server_context.worker_index or 1),
                wait_seconds=SETTINGS.queue_timeout_seconds,
                target_seconds=SETTINGS.latency_target_seconds,
            ),
            metrics=_ENTRY_METRICS,
        )

        def changed() -> None:
            admission.wake()
            if any(link.up for link in self._links):
                mark_entry_ready()

        for link in self._links:
            link.on_change = changed
        local = LocalCache(
            max_entries=SETTINGS.local_cache_entries, ttl_seconds=SETTINGS.cache_ttl_seconds, metrics=_ENTRY_METRICS
        )
        address = SETTINGS.redis_address
        connection = Connection(address, timeout_seconds=SETTINGS.redis_timeout_seconds) if address else None
        shared = SharedCache(connection, ttl_seconds=SETTINGS.redis_ttl_seconds, metrics=_ENTRY_METRICS)
        self._housekeeping = Housekeeping(
            local, shared, fingerprint=self._fingerprint, sweep_seconds=SETTINGS.cache_sweep_seconds
        )
        self._dedup = Deduplication(local, shared, _ENTRY_METRICS)
        pipeline = Pipeline(
            info=INFO,
            model_name=TAG,
            max_length=INFO.length_in_use(SETTINGS.max_length),
            fingerprint=self._fingerprint,
            tokenizer=self._tokenizer,
            dedup=self._dedup,
            admission=admission,
            metrics=_ENTRY_METRICS,
            strict_model=SETTINGS.strict_model,
        )
        health = Health(tag=TAG, info=INFO, links=self._links, shared=shared, drain=_DRAIN, settings=SETTINGS)
        created = round(STORED.info.creation_time.timestamp())
        catalog = Catalog(tag=TAG, info=INFO, created=created, links=self._links, settings=SETTINGS)
        self.routes = Routes(
            pipeline=pipeline,
            health=health,
            exposition=Exposition(self._links, Machine(_WORKERS.processes)),
            catalog=catalog,
            quota=Quota(SETTINGS.pairs_per_key_per_worker, admission.seconds_for),
            drain=_DRAIN,
            entry_metrics=_ENTRY_METRICS,
            settings=SETTINGS,
        )
        self._headcount = Headcount(_WORKERS, SETTINGS.workers + SCORER_COUNT)
        self._all_were_ready = False

    def _clients(self) -> list[ScorerClient]:
        return [RemoteScorer(getattr(self, f"scorer_{index}")) for index in range(SCORER_COUNT)]

    def _fingerprint(self) -> str | None:
        """Name the model last heard of: what it scored is known even while it is away."""
        return next((link.status.fingerprint for link in self._links if link.status), None)

    @bentoml.on_deployment  # makes it a static method
    def check() -> None:
        """Run once in the parent before any worker starts: what is cheap to check stops the start here."""
        atexit.register(exit_as_the_scorer_did)
        bound_shutdown(SETTINGS.shutdown_seconds)
        check_disk(SETTINGS.workers + SCORER_COUNT)
        check_model()
        check_keys()

    @bentoml.on_startup
    async def start(self) -> None:
        """Begin to watch the Scorers, Redis and the signals."""
        _ENTRY_METRICS.draining.set(_DRAIN.begun)
        drain_on_signals(_DRAIN)
        _CURRENT["routes"] = self.routes
        _ENTRY_METRICS.on_stage = stage_spans()
        _ENTRY_METRICS.begin(pairs=SETTINGS.queue_pairs_per_worker, wait_seconds=SETTINGS.queue_timeout_seconds)
        await self._housekeeping.start()
        self._headcount.start()
        for link in self._links:
            link.start()

    @bentoml.on_startup
    async def spare_what_is_loaded(self) -> None:
        """Leave all that is there by now out of Python's search for garbage: it stays, and a search through it stops everything for a tenth of a second."""
        gc.collect()
        gc.freeze()

    @bentoml.on_shutdown
    async def stop(self) -> None:
        """End what start() began."""
        self._headcount.stop()
        await self._dedup.stop()
        await self._housekeeping.stop()
        for link in self._links:
            await link.stop()
        self._tokenizer.close()

    @bentoml.api(route="/rerank", input_spec=RerankInput, output_spec=RerankOutput)
    async def rerank(self, query: Any, **fields: Any) -> Any:
        """Sort documents by how well they answer the query, best first."""
        if isinstance(query, Request):
            return await self.routes.rank(query, native_or_tei)
        # Called in Python, without a server: BentoML has made the Scorer in this process and runs no start-up hook.
        await self.start()
        async with asyncio.timeout(SETTINGS.request_timeout_seconds):
            while not await self.__is_ready__():  # noqa: ASYNC110  rare, and readiness is no event
                await asyncio.sleep(_POLL_SECONDS)
        given = {name: value for name, value in fields.items() if value is not None}
        return await self.routes.answer({"query": query, **given}, time.monotonic())

    async def __is_ready__(self) -> bool:
        """/readyz: a Scorer answers and is warm; at the start, all entry workers have seen one; not while the server ends."""
        if _DRAIN.begun:
            return False
        up = any(link.up for link in self._links)
        if up and not self._all_were_ready:
            self._all_were_ready = all_entries_were_ready()
        return up and self._all_were_ready

    async def __is_alive__(self) -> bool:
        """/livez: no worker process has been gone for longer than RERANKER_LIVENESS_SECONDS."""
        gone = max(self._headcount.missing_seconds, *(link.gone_seconds for link in self._links))
        return _DRAIN.begun or gone <= SETTINGS.liveness_seconds


class _PinnedService(SparingService):
    """A Bento knows the Scorers it was built with; it may be served with another number of them."""

    def on_load_bento(self, bento: Any) -> None:
        """Tell every service its Bento; the model tags are pinned already."""
        for service in self.all_services().values():
            service.bento = bento


SCORERS = [scorer_service(index) for index in range(SCORER_COUNT)]
for _index, _scorer in enumerate(SCORERS):
    setattr(_Reranker, f"scorer_{_index}", bentoml.depends(_scorer))

Reranker: Any = bentoml.service(
    name=ENTRY,
    service_class=_PinnedService,
    # No distribution is named: into one that it knows BentoML puts a compiler and git, and every package comes as a wheel.
    image=bentoml.images.Image(base_image="docker.io/library/python:3.11-slim", distro="", python_version="3.11"),
    workers=SETTINGS.workers,
    traffic={"timeout": SETTINGS.service_timeout_seconds},
    runner_probe={"enabled": False},
    metrics={"enabled": False},
    # BentoML's prints paths and content types as callers send them; the edge's names routes.
    logging={"access": {"enabled": False}},
)(bentoml.asgi_app(make_app(lambda: _CURRENT["routes"]), path="/")(_Reranker))
if SETTINGS.cors_origin_list:
    # Outermost: a browser's preflight comes without a key, and errors must be readable too.
    Reranker.add_asgi_middleware(
        CORSMiddleware,
        allow_origins=SETTINGS.cors_origin_list,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=EXPOSED_HEADERS,
    )
Reranker.add_asgi_middleware(
    Edge, metrics=_ENTRY_METRICS, drain=_DRAIN, keys=API_KEYS, open_pages=SETTINGS.open_pages, access_log=True
)
