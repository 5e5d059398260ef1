"""A pipeline with the built-in tokenizer and a Scorer that counts, for the tests of pipeline.py."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from parts import FakeLink, make_admission, make_info

from bento_service.admission import Admission
from bento_service.cache.local import LocalCache
from bento_service.cache.shared import SharedCache
from bento_service.dedup import Deduplication
from bento_service.metrics import EntryMetrics
from bento_service.pairs import Outcome, PairScore, TokenPair
from bento_service.pipeline import Pipeline
from bento_service.schemas import Document, RerankQuery, RerankResult
from bento_service.tokenizer import PairTokenizer, TokenizedPair

MODEL = "mine:v1"
FINGERPRINT = bytes(32).hex()


class CountingLink(FakeLink):
    """A Scorer that answers at once, or when its gate opens: a pair's raw score is the number of its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[TokenPair] = []
        self.outcome = Outcome.SCORED
        self.error: Exception | None = None
        self.reached, self.gate = asyncio.Event(), asyncio.Event()
        self.gate.set()

    async def score(self, blobs: list[bytes]) -> list[PairScore]:
        """Fail or count."""
        self.reached.set()
        await self.gate.wait()
        if self.error:
            raise self.error
        pairs = [TokenPair.unpack(blob) for blob in blobs]
        self.pairs += pairs
        return [PairScore(float(len(pair.ids)), self.outcome) for pair in pairs]


class GatedTokenizer(PairTokenizer):
    """A tokenizer whose thread waits at an open gate, until a test shuts it."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.gate = threading.Event()
        self.gate.set()
        self.reached = threading.Event()
        self.jobs = 0

    def encode_now(self, query: str, documents: Sequence[str], *rest: Any, **named: Any) -> list[TokenizedPair]:
        """Wait for the gate."""
        self.jobs += 1
        self.reached.set()
        self.gate.wait()
        return super().encode_now(query, documents, *rest, **named)


class Parts:
    """A pipeline and what it is made of."""

    def __init__(
        self, make: Callable[..., Any], metrics: EntryMetrics, *, strict: bool = False, most: int = 100, cached: int = 0
    ) -> None:
        self.link, self.metrics = CountingLink(), metrics
        self.admission: Admission = make_admission(metrics, self.link, most=most)
        self.tokenizer: GatedTokenizer = make("cross-encoder", max_length=64, room=GatedTokenizer)
        self.local = LocalCache(max_entries=cached, ttl_seconds=300.0, metrics=metrics)
        self.dedup = Deduplication(self.local, SharedCache(None, ttl_seconds=600.0, metrics=metrics), metrics)
        self.fingerprint: str | None = FINGERPRINT
        self.pipeline = Pipeline(
            info=make_info("cross-encoder"),
            model_name=MODEL,
            max_length=64,
            fingerprint=lambda: self.fingerprint,
            tokenizer=self.tokenizer,
            dedup=self.dedup,
            admission=self.admission,
            metrics=metrics,
            strict_model=strict,
        )

    async def landed(self) -> None:
        """Wait until every computation has ended, also those that nobody waits for."""
        await asyncio.gather(*self.dedup._tasks, return_exceptions=True)

    async def rerank(self, *texts: str, query: str = "q", seconds: float = 60.0, **fields: Any) -> RerankResult:
        """Send a request."""
        asked = RerankQuery(query, [Document(text) for text in texts], **fields)
        return await self.pipeline.rerank(asked, deadline=time.monotonic() + seconds)


@contextlib.asynccontextmanager
async def held(parts: Parts) -> AsyncIterator[None]:
    """Keep the tokenizer's thread waiting."""
    parts.tokenizer.gate.clear()
    try:
        yield
    finally:
        parts.tokenizer.gate.set()
