"""One Scorer seen from an entry worker: is it there, how fast is it, and calls to it that cannot hang.

The listening socket belongs to circus, so calls to a dead Scorer wait in the backlog instead of failing.
Hence a heartbeat for a hung process and a look at the process itself for a dead one.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import psutil

from bento_service.errors import ScorerDown, ScorerFailed, place_of
from bento_service.pairs import PairScore

logger = logging.getLogger("bentoml.reranker")

HEARTBEAT_SECONDS = 1.0
PROCESS_CHECK_SECONDS = 0.1
_RETRY_SECONDS = 0.2
# BentoML's dispatcher learns from its first dozen calls, some of which wait for twice a forward.
WARM_UP_CALLS = 12
_WARM_UP_TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class ScorerStatus:
    """What a Scorer says with each heartbeat.

    precision_reason: why `dtype` is what it is · batch_pairs: pairs of a quarter of a second of work at the measured speed ·
    most_batch_pairs: what BentoML joins at most · busy_seconds: how long the batch in hand has been running, 0 without one.
    """

    pid: int
    device: str
    dtype: str
    quantization: str
    precision_reason: str
    fell_back: bool
    weight_bytes: int
    fingerprint: str
    max_length: int
    batch_pairs: int
    most_batch_pairs: int
    pairs_per_second: float
    busy_seconds: float


class ScorerClient(Protocol):
    """What the link needs of a Scorer; ConnectionError means that the connection broke, any other error that the call failed."""

    async def score(self, pairs: list[bytes]) -> list[bytes]:
        """Score packed pairs, in order."""

    async def heartbeat(self) -> ScorerStatus:
        """Say who and how fast the Scorer is."""


class ScorerLink:
    """Watches one Scorer and calls it.

    silence_seconds: without a heartbeat for this long a running process counts as hung ·
    hang_seconds: so does one whose batch in hand has been running for this long ·
    warm_up: a packed pair that is sent a dozen times before the Scorer counts as up · on_change: called when `up` changes.
    """

    def __init__(
        self,
        client: ScorerClient,
        *,
        warm_up: bytes,
        silence_seconds: float,
        hang_seconds: float,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._client = client
        self._warm_up = warm_up
        self._silence_seconds = silence_seconds
        self._hang_seconds = hang_seconds
        self.on_change = on_change
        self.status: ScorerStatus | None = None
        self.up = False
        self._last_heard = time.monotonic()
        self._was_up = False
        self._calls: set[asyncio.Task[list[bytes]]] = set()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def batch_pairs(self) -> int:
        """Pairs of one Scorer batch at the measured speed."""
        return self.status.batch_pairs if self.status else 1

    @property
    def most_batch_pairs(self) -> int:
        """Pairs of one Scorer batch at most."""
        return self.status.most_batch_pairs if self.status else 1

    @property
    def pairs_per_second(self) -> float:
        """The measured speed; 0 while unknown."""
        return self.status.pairs_per_second if self.status else 0.0

    @property
    def gone_seconds(self) -> float:
        """Seconds since a Scorer that was up has been down; 0 while it is up or has never been."""
        return time.monotonic() - self._last_heard if self._was_up and not self.up else 0.0

    def start(self) -> None:
        """Begin to watch; safe to call twice."""
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._forever(step)) for step in (self._listen, self._look_at_process)]

    async def stop(self) -> None:
        """End the watch; safe to call twice."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def score(self, blobs: list[bytes]) -> list[PairScore]:
        """Score packed pairs, in order; repeats once on a broken connection, since scoring again gives the same.

        Raises ScorerDown as soon as the Scorer is known to be gone, ScorerFailed if it answers with an error.
        """
        for _ in range(2):
            if not self.up:
                break
            call = asyncio.ensure_future(self._client.score(blobs))
            self._calls.add(call)
            try:
                answers = await call
            except asyncio.CancelledError:
                if (task := asyncio.current_task()) and task.cancelling():
                    call.cancel()
                    raise
                break  # _go_down cancelled the call, not this caller
            except ConnectionError:
                if not _process_runs(self.status):
                    self._go_down("its process ended")
                continue
            except Exception as error:
                logger.error("a call to the Scorer failed: %s at %s", type(error).__name__, place_of(error))  # noqa: TRY400
                raise ScorerFailed("the model could not score this request; the server's log says why") from error
            finally:
                self._calls.discard(call)
            return _unpacked(answers, len(blobs))
        raise ScorerDown("the model went away during the request: try again after Retry-After seconds", retry_after_seconds=5)

    async def _forever(self, step: Callable[[], object]) -> None:
        """Run a step again and again: a watch that dies unseen would be worse than none."""
        while True:
            try:
                await step()  # type: ignore[misc]
            except Exception:
                logger.exception("the watch over the Scorer stumbled and goes on")
                await asyncio.sleep(_RETRY_SECONDS)

    async def _listen(self) -> None:
        try:
            async with asyncio.timeout(HEARTBEAT_SECONDS):
                status = await self._client.heartbeat()
        except Exception:  # noqa: BLE001  whatever it was, the Scorer was not heard
            if self.up and time.monotonic() - self._last_heard > self._silence_seconds:
                self._go_down(f"it has been silent for {self._silence_seconds:g} s")
            await asyncio.sleep(_RETRY_SECONDS)
            return
        if status.busy_seconds > self._hang_seconds:
            self._go_down(f"its batch has been running for {status.busy_seconds:.0f} s")
            await asyncio.sleep(HEARTBEAT_SECONDS)
            return
        new = not self.up or self.status is None or self.status.pid != status.pid
        if new:
            if self.up:
                self._go_down("another process took its place")
            try:
                await self._train(status)
            except (ConnectionError, TimeoutError):
                await asyncio.sleep(_RETRY_SECONDS)
                return  # it died or hangs; the next heartbeat meets it again or its successor
        self._last_heard = time.monotonic()
        self.status = status
        if new:
            self.up = self._was_up = True
            logger.info(
                "Scorer up: process %d on %s in %s (%s)", status.pid, status.device, status.dtype, status.precision_reason
            )
            self.on_change()
        await asyncio.sleep(HEARTBEAT_SECONDS)

    async def _train(self, status: ScorerStatus) -> None:
        """Let the dispatcher of a new Scorer learn on calls that nobody waits for."""
        async with asyncio.timeout(_WARM_UP_TIMEOUT_SECONDS):
            for _ in range(WARM_UP_CALLS):
                await self._client.score([self._warm_up])
                if not _process_runs(status):
                    raise ConnectionError("the Scorer ended while it was warmed up")

    async def _look_at_process(self) -> None:
        if self.up and not _process_runs(self.status):
            self._go_down("its process ended")
        await asyncio.sleep(PROCESS_CHECK_SECONDS)

    def _go_down(self, why: str) -> None:
        if not self.up:
            return
        self.up = False
        logger.error("Scorer down: %s; requests that need it are answered with 503 until it is back", why)
        for call in self._calls:
            call.cancel()
        self.on_change()


def _process_runs(status: ScorerStatus | None) -> bool:
    if status is None:
        return False
    try:
        # Until circus reaps it, up to 10 s later, a killed process is a zombie.
        return bool(psutil.Process(status.pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _unpacked(answers: Sequence[bytes], expected: int) -> list[PairScore]:
    if len(answers) != expected:
        raise ScorerFailed("the model answered with another number of scores than it was asked for")
    try:
        return [PairScore.unpack(answer) for answer in answers]
    except (struct.error, ValueError):
        raise ScorerFailed("the model answered in a way that cannot be read") from None
