"""Servers without HTTP, one or several over one Redis; their Scorers score by the pair alone, and their calls can be held."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

from parts import FakeLink, assert_idle, make_admission, make_info, played
from pipeline_parts import FINGERPRINT, MODEL

from bento_service.cache.connection import Connection
from bento_service.cache.local import LocalCache
from bento_service.cache.shared import Claim, SharedCache
from bento_service.dedup import Deduplication
from bento_service.flight import Flight
from bento_service.metrics import EntryMetrics
from bento_service.pairs import Outcome, PairScore, TokenPair
from bento_service.pipeline import Pipeline
from bento_service.redis_url import parse_redis_url
from bento_service.schemas import CacheUse, Document, RerankQuery, RerankResult
from bento_service.tokenizer import Cut, PairTokenizer
from redis_servers import RedisServer

WINDOW = 64
LONG = "long " * 100


@contextlib.contextmanager
def make_tokenizer(folder: Path) -> Iterator[PairTokenizer]:
    """Offer the built-in model's tokenizer, as a cross-encoder's."""
    made = PairTokenizer(folder / "tokenizer.json", make_info("cross-encoder"), max_length=WINDOW)
    yield made
    made.close()


async def until(holds: Callable[[], object], *, seconds: float = 5.0) -> None:
    """Wait until something holds, but not for ever."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"{holds} did not hold within {seconds} s"
        await asyncio.sleep(0.002)


def raw_score(pair: TokenPair) -> float:
    """Score a pair by its tokens alone: a float32 in [-8, 8)."""
    return int.from_bytes(hashlib.sha256(pair.ids.tobytes()).digest()[:2]) / 4096 - 8


class Call:
    """A call to a Scorer. texts: of its documents."""

    def __init__(self, link: PairLink, pairs: list[TokenPair]) -> None:
        self.texts = [link.text_of(pair) for pair in pairs]
        self._link = link
        self._pairs = pairs
        self.end: asyncio.Future[list[PairScore]] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[Any] | None = asyncio.current_task()

    def answer(self, *, failed: Collection[str] = (), late: Collection[str] = ()) -> None:
        """End it with scores, but not for all."""
        link, scores = self._link, []
        for text, pair in zip(self.texts, self._pairs, strict=True):
            outcome = Outcome.FAILED if text in failed else Outcome.LATE if text in late else Outcome.SCORED
            raw = link.scores.get(text, raw_score(pair) + link.offset)
            scores.append(PairScore(raw if outcome is Outcome.SCORED else float("nan"), outcome, link.fingerprint))
        self.end.set_result(scores)

    def fail(self, error: Exception) -> None:
        """End it with an error."""
        self.end.set_exception(error)


class PairLink(FakeLink):
    """While it is held its calls wait in `calls`. asked: every document that went out · scores: by document, for those that are given."""

    def __init__(self, tokenizer: PairTokenizer, batch_pairs: int) -> None:
        super().__init__(batch_pairs)
        self.calls: asyncio.Queue[Call] = asyncio.Queue()  # type: ignore[assignment]
        self.asked: list[str] = []
        self.held = True
        self.offset = 0.0
        self.scores: dict[str, float] = {}
        self.fingerprint = bytes.fromhex(FINGERPRINT)
        self._decode = tokenizer._tokenizer.decode

    def text_of(self, pair: TokenPair) -> str:
        """Read a document back."""
        assert pair.type_ids is not None
        return str(self._decode(pair.ids[pair.type_ids == 1].tolist()))

    async def score(self, blobs: list[bytes]) -> list[PairScore]:
        """Score at once, or wait until the test ends the call."""
        call = Call(self, [TokenPair.unpack(blob) for blob in blobs])
        self.asked += call.texts
        if self.held:
            self.calls.put_nowait(call)
        else:
            call.answer()
        return await call.end


class Server:
    """A pipeline and what it is made of. flights: all that ever began · claims: what Redis said to each of its claims."""

    def __init__(
        self,
        tokenizer: PairTokenizer,
        metrics: EntryMetrics,
        *,
        redis: RedisServer | None = None,
        link: PairLink | None = None,
        most: int = 10_000,
        cached: int = 10_000,
        batch_pairs: int = 32,
        redis_seconds: float = 1.0,
    ) -> None:
        self.redis, self.metrics, self.tokenizer = redis, metrics, tokenizer
        self.link = link or PairLink(tokenizer, batch_pairs)
        self.admission = make_admission(metrics, self.link, most=most)
        self.local = LocalCache(max_entries=cached, ttl_seconds=300.0, metrics=metrics)
        self.connection = Connection(parse_redis_url(redis.url), timeout_seconds=redis_seconds) if redis else None
        self.shared = SharedCache(self.connection, ttl_seconds=600.0, metrics=metrics)
        self.dedup = Deduplication(self.local, self.shared, metrics)
        self.fingerprint: str | None = FINGERPRINT
        self.pipeline = Pipeline(
            info=make_info("cross-encoder"),
            model_name=MODEL,
            max_length=WINDOW,
            fingerprint=lambda: self.fingerprint,
            tokenizer=tokenizer,
            dedup=self.dedup,
            admission=self.admission,
            metrics=metrics,
            strict_model=False,
        )
        self.flights: list[Flight] = []
        self.claims: list[Claim] = []
        begin, claim = self.dedup._begin, self.shared.claim

        def noted_begin(*given: Any) -> Flight:
            self.flights.append(begin(*given))
            return self.flights[-1]

        async def noted_claim(*given: Any, **named: Any) -> Claim:
            self.claims.append(await claim(*given, **named))
            return self.claims[-1]

        self.dedup._begin, self.shared.claim = noted_begin, noted_claim  # type: ignore[method-assign]

    def ask(
        self, *texts: str, query: str = "q", seconds: float = 60.0, use: CacheUse = CacheUse.FULL, **fields: Any
    ) -> asyncio.Task[RerankResult]:
        """Begin a request."""
        asked = RerankQuery(query, [Document(text) for text in texts], **{"raw_scores": True, **fields})
        return asyncio.create_task(self.pipeline.rerank(asked, deadline=time.monotonic() + seconds, use=use))

    async def known(
        self, *texts: str, use: CacheUse = CacheUse.FULL, seconds: float = 60.0
    ) -> tuple[list[float], tuple[int, ...]]:
        """Ask, with a Scorer that answers at once: the raw scores, and how many were hits, misses, shared."""
        self.link.held = False
        result = await self.ask(*texts, use=use, seconds=seconds)
        self.link.held = True
        return raws(result), astuple(result.cache)

    def truth(self, *texts: str, query: str = "q") -> list[float]:
        """Say what the raw scores must be."""
        pairs = self.tokenizer.encode_now(query, texts, Cut(), 0.0, 0)
        return [raw_score(pair.windows[0]) for pair in pairs]

    async def answer(self, **outcomes: Collection[str]) -> list[str]:
        """End the next call, once it has come, see that it is noticed, and tell which documents were in it."""
        call = await self.link.calls.get()
        call.answer(**outcomes)
        assert call.task
        await asyncio.wait({call.task})
        return call.texts

    async def joined(self, count: int) -> None:
        """Wait until so many requests have an interest in one computation."""
        await until(lambda: any(flight._wanted == count for flight in self.dedup._flights.values()))

    async def waits_for_others(self) -> None:
        """Wait until Redis has said that another server computes something that is wanted here."""
        await until(lambda: self.claims and self.claims[-1].foreign)

    async def landed(self) -> None:
        """Wait until every computation has ended, also those that nobody waits for."""
        await until(lambda: not self.dedup._tasks and not self.admission._calls)

    async def assert_nothing_left(self) -> None:
        """No pair counts as being computed, nobody waits, and no claim or result is forgotten."""
        await self.landed()
        assert (self.dedup._flights, self.dedup._tasks) == ({}, set())
        for flight in self.flights:
            assert flight.ended.done()
            assert all(answer.done() for answer in flight.answers.values())
            assert (flight.calls, flight.unstored, flight.claimed, flight._wanted) == ({}, {}, set(), 0)
        assert_idle(self.admission, self.metrics)
        assert self.link.calls.empty()


def raws(result: RerankResult) -> list[float]:
    """List the scores in the order of the documents."""
    return [each.score for each in sorted(result.ranked, key=lambda each: each.index)]


def claims_in(redis: RedisServer) -> list[bytes]:
    """Name the queries that somebody has claims in."""
    return list(redis.client().scan_iter("*:claims"))


def served(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Play a test with its servers started; nothing may be left over by it."""

    @functools.wraps(test)
    async def whole(**fixtures: Any) -> None:
        values = [each for value in fixtures.values() for each in (value if isinstance(value, list) else [value])]
        async with clean([each for each in values if isinstance(each, Server)]):
            await test(**fixtures)

    return played(whole)


@contextlib.asynccontextmanager
async def clean(servers: list[Server]) -> AsyncIterator[None]:
    """Start servers and see to it that nothing is left over: pairs, waiters, tasks, connections, errors that nobody saw."""
    before, problems = asyncio.all_tasks(), list[dict[str, Any]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, problem: problems.append(problem))
    gc.freeze()  # what is there already need not be looked at again
    try:
        for server in servers:
            await server.shared.probe()
        yield
        for server in servers:
            await server.assert_nothing_left()
            await server.shared.close()
            server.flights.clear()
        await until(lambda: asyncio.all_tasks() <= before)
        gc.collect()
        assert problems == [], repr(problems)
    finally:
        for server in servers:
            await server.shared.close()
        gc.unfreeze()
