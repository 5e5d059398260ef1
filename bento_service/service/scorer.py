"""One Scorer service for each model worker, and the entry's way to call it.

Workers of one service would share a listening socket, which spreads calls unevenly and hides which one died.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import bentoml

from bento_service.errors import DeviceLost
from bento_service.metrics import ScorerMetrics
from bento_service.scorer_link import ScorerStatus
from bento_service.service.dispatcher import begin_at_once, poll_for, wait_briefly
from bento_service.service.shutdown import outlive_entries
from bento_service.service.startup import INFO, SCORER_COUNT, SETTINGS, TAG, give_up, ready_file
from bento_service.service.tracing import SparingService
from bento_service.settings import scorer_environment

logger = logging.getLogger("bentoml.reranker")

_NEVER = 10**9  # BentoML's proxy drops the calls in flight whenever it renews its session, so it never does
_NO_DROP_MS = 3_600_000  # the dispatcher drops what it predicts to take longer; shedding load is admission's work
_METRICS = ScorerMetrics()
wait_briefly()
begin_at_once()


def scorer_service(index: int) -> Any:
    """Make the service of model worker `index`."""

    class Scorer:
        """Scores packed pairs; BentoML's adaptive batching joins the calls of all entry workers."""

        model = bentoml.models.BentoModel(TAG)

        def __init__(self) -> None:
            ready = ready_file(index)
            try:
                # Imported here: the entry service imports this file too, and holds no torch.
                loading = importlib.import_module("bento_service.scorer.loading")
                # One thread does all of torch's work, loading included: with a second one that has called into OpenMP, libgomp
                # counts more threads than cores and lets none of them spin any more, a quarter of the speed (ADR 4).
                # Lanes compute alone, so they do not count.
                self._torch_thread = ThreadPoolExecutor(1, thread_name_prefix="torch")
                load = partial(loading.load_scorer, Path(self.model.path), INFO, SETTINGS, index=index, siblings=SCORER_COUNT)
                self._loaded = self._torch_thread.submit(load).result()
            except Exception as error:  # noqa: BLE001  whatever it was, it becomes one line
                give_up(error, first_start=ready is not None and not ready.exists())
            precision = self._loaded.precision
            _METRICS.loaded(
                asked=SETTINGS.asked_quantization,
                quantization=precision.effective,
                dtype=str(precision.dtype).removeprefix("torch."),
                device=str(self._loaded.device),
                fell_back=precision.fell_back,
                fingerprint=self._loaded.fingerprint,
                tag=TAG,
                info=INFO,
            )
            logger.info("serves %s in %s on %s: %s", TAG, precision.effective, self._loaded.device, precision.reason)
            if ready is not None:
                ready.touch()

        @bentoml.on_startup
        async def start(self) -> None:
            """Begin to watch the signals."""
            outlive_entries()

        @bentoml.api(batchable=True, batch_dim=0, max_batch_size=SETTINGS.micro_batch_max_size, max_latency_ms=_NO_DROP_MS)
        async def score(self, pairs: list[bytes]) -> list[bytes]:
            """Score packed pairs (pairs.TokenPair), one packed score (pairs.PairScore) for each, in order."""
            try:
                loop = asyncio.get_running_loop()
                scores, tally = await loop.run_in_executor(self._torch_thread, self._loaded.engine.score, pairs)
            except DeviceLost as error:
                give_up(error)
            _METRICS.observe(tally)
            poll_for(tally.forward_seconds)
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
                "fell_back": loaded.precision.fell_back,
                "weight_bytes": loaded.weight_bytes,
                "fingerprint": loaded.fingerprint,
                "max_length": loaded.max_length,
                "batch_pairs": min(loaded.engine.batch_pairs, SETTINGS.micro_batch_max_size),
                "most_batch_pairs": SETTINGS.micro_batch_max_size,
                "pairs_per_second": loaded.engine.pairs_per_second,
                "busy_seconds": loaded.engine.busy_seconds,
            }

    return bentoml.service(
        name="Scorer" if index == 0 else f"Scorer{index + 1}",
        service_class=SparingService,
        workers=1,
        threads=1,
        traffic={"timeout": SETTINGS.service_timeout_seconds},
        runner_connection={"max_requests": _NEVER, "max_age": float(_NEVER)},
        metrics={"enabled": False},
        logging={"access": {"enabled": False}},
        envs=[{"name": name, "value": value} for name, value in scorer_environment().items()],
    )(Scorer)


class RemoteScorer:
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
