"""A Scorer without a model, for tests of what surrounds it."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from bento_service.pairs import Outcome, PairScore, TokenPair

FINGERPRINT = bytes(range(32))


class FakeScorer:
    """Scores a pair by its tokens alone; `outcome` makes it fail, `pause` holds its calls, `up` silences its heartbeat."""

    def __init__(self) -> None:
        self.outcome = Outcome.SCORED
        self.error: Exception | None = None
        self.up = True
        self.pause: asyncio.Event | None = None
        self.pairs = 0
        self.to_async = self

    async def score(self, *, pairs: list[bytes]) -> list[bytes]:
        """Score packed pairs."""
        if self.pause:
            await self.pause.wait()
        if self.error:
            raise self.error
        self.pairs += len(pairs)
        return [PairScore(self.raw(TokenPair.unpack(blob)), self.outcome, FINGERPRINT).pack() for blob in pairs]

    @staticmethod
    def raw(pair: TokenPair) -> float:
        """Map token ids to -0.5..0.5, the same for the same ids."""
        return float((pair.ids.astype("int64") * 7919).sum() % 1000) / 1000 - 0.5

    async def heartbeat(self) -> dict[str, Any]:
        """Say who this is."""
        if not self.up:
            raise ConnectionError
        return {
            "pid": os.getpid(),
            "device": "cpu",
            "dtype": "float32",
            "quantization": "none",
            "precision_reason": "a test",
            "fell_back": False,
            "weight_bytes": 1000,
            "fingerprint": FINGERPRINT.hex(),
            "max_length": 256,
            "batch_pairs": 64,
            "most_batch_pairs": 128,
            "pairs_per_second": 100.0,
            "busy_seconds": 0.0,
        }
