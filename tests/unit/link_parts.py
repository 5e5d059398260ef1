"""A Scorer that follows a script, and the watch over it, for the tests of scorer_link.py."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

from bento_service.pairs import Outcome, PairScore
from bento_service.scorer_link import ScorerLink, ScorerStatus

WARM = b"warm-up"
SCORE = PairScore(0.5, Outcome.SCORED)


class FakeClient:
    """A Scorer that follows a script: an error is raised, an event or a future waited for, a list is the answer; else it scores."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.heart: Exception | None = None
        self.silent = False
        self.busy_seconds = 0.0
        self.heartbeats: asyncio.Queue[int] = asyncio.Queue()
        self.script: list[Exception | asyncio.Event | asyncio.Future[None] | list[bytes]] = []
        self.calls: list[list[bytes]] = []
        self.waits = asyncio.Event()

    async def score(self, pairs: list[bytes]) -> list[bytes]:
        """Follow the script."""
        self.calls.append(pairs)
        step = self.script.pop(0) if self.script else None
        if isinstance(step, Exception):
            raise step
        if isinstance(step, list):
            return step
        if step:
            self.waits.set()
            await (step.wait() if isinstance(step, asyncio.Event) else step)
        return [SCORE.pack()] * len(pairs)

    async def heartbeat(self) -> ScorerStatus:
        """Answer, fail or stay silent."""
        self.heartbeats.put_nowait(self.pid)
        if self.heart:
            raise self.heart
        if self.silent:
            await asyncio.Event().wait()
        return ScorerStatus(
            pid=self.pid,
            device="cpu",
            dtype="float32",
            quantization="none",
            precision_reason="as asked",
            fell_back=False,
            weight_bytes=1000,
            fingerprint="f" * 64,
            max_length=256,
            batch_pairs=64,
            most_batch_pairs=128,
            pairs_per_second=100.0,
            busy_seconds=self.busy_seconds,
        )


@contextlib.asynccontextmanager
async def watched(
    client: FakeClient, *, silence_seconds: float = 60.0, hang_seconds: float = 60.0
) -> AsyncIterator[tuple[ScorerLink, asyncio.Queue[bool]]]:
    """Watch a client; the queue gets `up` at each change."""
    link = ScorerLink(client, warm_up=WARM, silence_seconds=silence_seconds, hang_seconds=hang_seconds)
    changes: asyncio.Queue[bool] = asyncio.Queue()
    link.on_change = lambda: changes.put_nowait(link.up)
    link.start()
    try:
        yield link, changes
    finally:
        await link.stop()
