"""The end of an entry worker: from SIGTERM until everything it has taken is answered.

    SIGTERM ▶ not ready, requests are still taken ▶ drain period over: new ones get 503 ▶ all answered, or the time is up ▶ the end

A balancer needs the first stretch to see /readyz and to send its requests elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator

from bento_service.errors import ShuttingDown

logger = logging.getLogger("bentoml.reranker")

# What was sent before the drain period ended may still be on its way through the kernel.
LAST_ARRIVALS_SECONDS = 0.5
# From the last answer on, for connections to close, claims in Redis to be released, which a slow Scorer may hold up for a lease of 2 s, and the
# processes to end.
ENDING_SECONDS = 4.0
_POLL_SECONDS = 0.02


class Drain:
    """Counts what a process has taken, and ends it in good order.

    drain_seconds: after SIGTERM, in which requests are still taken · shutdown_seconds: after SIGTERM, in which everything has ended;
    what is not answered by shortly before then gets 503 · on_begin: called when it begins.
    """

    def __init__(self, *, drain_seconds: float, shutdown_seconds: float, on_begin: Callable[[], None] = lambda: None) -> None:
        self._on_begin = on_begin
        self._drain_seconds = drain_seconds
        self._answer_seconds = max(drain_seconds, shutdown_seconds - ENDING_SECONDS)
        self.begun = False
        self.closed = False
        self._over = False
        self._limits: set[asyncio.Timeout] = set()
        self._task: asyncio.Task[None] | None = None
        self._taken = 0

    @property
    def taken(self) -> int:
        """Requests that are being read or answered."""
        return self._taken

    def begin(self, end: Callable[[], None], *, at_once: bool = False) -> None:
        """Begin to end; the first call counts. end: called when nothing is left to answer · at_once: without a drain period."""
        if self.begun:
            return
        self.begun = True
        self._on_begin()
        seconds = 0.0 if at_once else self._drain_seconds
        logger.info("shutting down: /readyz is off, requests are taken for %g s more, %d are in hand", seconds, self._taken)
        self._task = asyncio.get_running_loop().create_task(self._run(seconds, end))

    async def _run(self, seconds: float, end: Callable[[], None]) -> None:
        """Wait for what was taken, within bounds, and end on every way out."""
        try:
            async with asyncio.timeout(self._answer_seconds):
                await asyncio.sleep(seconds)
                await asyncio.sleep(LAST_ARRIVALS_SECONDS)
                self.closed = True
                while self._taken:  # noqa: ASYNC110  rare, and short
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            logger.warning("shutting down: %d requests are not answered in time and get 503", self._taken)
        finally:
            self._end_all()
            end()

    @contextlib.contextmanager
    def take(self) -> Iterator[None]:
        """Count a request as taken until it is answered."""
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    @contextlib.asynccontextmanager
    async def bounded(self) -> AsyncIterator[None]:
        """Raise ShuttingDown within when the time for answers is up."""
        try:
            async with asyncio.timeout(0 if self._over else None) as limit:
                self._limits.add(limit)
                try:
                    yield
                finally:
                    self._limits.discard(limit)
        except TimeoutError:
            if limit.expired():
                raise shutting_down() from None
            raise

    def _end_all(self) -> None:
        """Let whatever is still being answered end now."""
        self.closed = self._over = True
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time())


def shutting_down() -> ShuttingDown:
    """Build the error of a request that this server does not answer any more."""
    return ShuttingDown(
        "this server is shutting down: try again after Retry-After seconds, at another one", retry_after_seconds=1
    )
