"""Big bodies are worked on one at a time, with rests between them, so that no number of them keeps the small ones waiting."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import time
from collections.abc import AsyncIterator, Iterator

from bento_service.errors import BodiesFull

BIG_BYTES = 64 * 1024  # a smaller body takes a few milliseconds at most, whatever is in it
_RESTS = 8.0  # times what the work took: reading big bodies holds the others up for at most a ninth of the time
_LONGEST_REST_SECONDS = 0.5
_RETRY_SECONDS = 1


class Effort:
    """What one body has cost so far, in seconds for which nothing else could run."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count what runs inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start


class Turns:
    """Hands out turns, the smallest body first: who sends the largest ones waits for the others."""

    def __init__(self) -> None:
        self._taken = False
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    @contextlib.asynccontextmanager
    async def turn(self, size_bytes: int, *, timeout_seconds: float) -> AsyncIterator[Effort]:
        """Work on a body of this size; a big one waits for its turn. Raises BodiesFull when that does not come in time."""
        effort = Effort()
        if size_bytes <= BIG_BYTES:
            yield effort
            return
        await self._take(size_bytes, timeout_seconds)
        try:
            yield effort
        finally:
            rest = min(_LONGEST_REST_SECONDS, _RESTS * effort.seconds)
            asyncio.get_running_loop().call_later(rest, self._pass_on)

    async def _take(self, size_bytes: int, timeout_seconds: float) -> None:
        if not self._taken:
            self._taken = True
            return
        come: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (size_bytes, next(self._numbers), come))
        left = True
        try:
            async with asyncio.timeout(timeout_seconds):
                await come
            left = False
        except TimeoutError:
            raise bodies_full() from None
        finally:
            if left and come.done() and not come.cancelled():
                self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            _, _, come = heapq.heappop(self._waiting)
            if not come.done():
                come.set_result(None)
                return
        self._taken = False


def bodies_full() -> BodiesFull:
    """Build the error of a body for which there is no memory or no time."""
    return BodiesFull(
        "too many large requests at once: try again after Retry-After seconds, or send smaller ones",
        retry_after_seconds=_RETRY_SECONDS,
    )
