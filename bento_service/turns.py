"""Big bodies are worked on one at a time, with rests between them, so that no number of them keeps the small ones waiting."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from bento_service.errors import BodiesFull

BIG_BYTES = 64 * 1024  # a smaller body takes a few milliseconds at most, whatever is in it
_RESTS = 8.0  # times what the work took: big bodies hold the others up for at most a ninth of the time
_LONGEST_REST_SECONDS = 0.5
_RETRY_SECONDS = 1


class Turns:
    """Hands out turns. timeout_seconds: how long a body waits for its turn."""

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._lock = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def turn(self, size_bytes: int) -> AsyncIterator[None]:
        """Work on a body of this size; a big one waits for its turn. Raises BodiesFull when that does not come."""
        if size_bytes <= BIG_BYTES:
            yield
            return
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._lock.acquire()
        except TimeoutError:
            raise bodies_full() from None
        start = time.perf_counter()
        try:
            yield
        finally:
            rest = min(_LONGEST_REST_SECONDS, _RESTS * (time.perf_counter() - start))
            asyncio.get_running_loop().call_later(rest, self._lock.release)


def bodies_full() -> BodiesFull:
    """Build the error of a body for which there is no memory or no time."""
    return BodiesFull(
        "too many large requests at once: try again after Retry-After seconds, or send smaller ones",
        retry_after_seconds=_RETRY_SECONDS,
    )
