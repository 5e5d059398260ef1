"""What the caches need between requests: probes of a Redis that is away, sweeps, and an ear for `make cache-clear`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from bento_service.cache.local import LocalCache
from bento_service.cache.shared import SharedCache

logger = logging.getLogger("bentoml.reranker")

_ROUND_SECONDS = 0.5


class Housekeeping:
    """Looks after both tiers.

    fingerprint: finds the model's, None while no Scorer was heard · sweep_seconds: between sweeps of expired entries.
    """

    def __init__(
        self, local: LocalCache, shared: SharedCache, *, fingerprint: Callable[[], str | None], sweep_seconds: float
    ) -> None:
        self._local = local
        self._shared = shared
        self._fingerprint = fingerprint
        self._sweep_seconds = sweep_seconds
        self._next_sweep = time.monotonic() + sweep_seconds
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Ask for Redis once, bounded in time, then go on in the background; safe to call twice."""
        if self._task is None:
            self._task = asyncio.create_task(self._forever())
            await self._shared.probe()

    async def stop(self) -> None:
        """End it and close the connections; safe to call twice."""
        task, self._task = self._task, None
        if task:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._shared.close()

    async def _forever(self) -> None:
        while True:
            await asyncio.sleep(_ROUND_SECONDS)
            try:
                await self._round()
            except Exception:
                logger.exception("the caches' housekeeping stumbled and goes on")

    async def _round(self) -> None:
        await self._shared.probe()
        fingerprint = self._fingerprint()
        if fingerprint and await self._shared.was_cleared(fingerprint):
            self._local.clear()
            logger.info("the cache was cleared: this process forgets too")
        if time.monotonic() >= self._next_sweep:
            self._next_sweep = time.monotonic() + self._sweep_seconds
            self._local.sweep()
        self._local.report_size()
