"""One computation of some pairs, with everybody who waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from bento_service.cache.keys import PairKeys
from bento_service.pairs import KnownScore, PairScore


class Origin(Enum):
    """Where a score came from: a cache, somebody else's computation, or this request's own."""

    PROCESS = "process"
    REDIS = "redis"
    SHARED_IN_PROCESS = "shared in process"
    SHARED_AMONG_SERVERS = "shared among servers"
    COMPUTED = "computed"


@dataclass(frozen=True, slots=True)
class Answer:
    """A pair's score and where it came from."""

    known: KnownScore
    origin: Origin


Answering = asyncio.Future[Answer | None]


class Flight:
    """One computation. It belongs to no request: it goes on while anybody wants it.

    answers: by pair key; None for a pair that was given up, which whoever wants it begins anew · ended: true after the last answer is
    stored, None after a failure, which is `error` · calls: to a Scorer, under way, with their pairs · unstored: computed, by
    fingerprint · claimed: pairs that Redis may hold a claim of ours to ·
    queued: pairs to be computed in this process · lost: pairs that another server has taken over.
    """

    def __init__(self, keys: PairKeys, places: Iterable[int], token: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.keys = keys
        self.places = list(places)
        self.token = token
        self.begun = time.monotonic()
        self.answers: dict[bytes, Answering] = {keys.pairs[place]: loop.create_future() for place in self.places}
        self.ended: asyncio.Future[bool | None] = loop.create_future()
        self.error: Exception | None = None
        self.task: asyncio.Task[None] | None = None
        self.calls: dict[asyncio.Task[list[PairScore]], list[int]] = {}
        self.unstored: dict[str, dict[bytes, KnownScore]] = {}
        self.claimed: set[bytes] = set()
        self.queued: set[bytes] = set()
        self.lost: set[bytes] = set()
        self.redis_turn = asyncio.Lock()  # a renewal that overtakes a release would claim what nobody computes
        self._other_keys: dict[str, PairKeys] = {}
        self._wanted = 0
        self._dropped = False

    @contextlib.contextmanager
    def wanted(self) -> Iterator[None]:
        """Be counted among those who wait; when the last one goes, what has not gone out to a Scorer is dropped."""
        self._wanted += 1
        try:
            yield
        finally:
            self._wanted -= 1
            if not self._wanted:
                self.drop()

    def drop(self) -> None:
        """Cancel what has not gone out to a Scorer; once, since its clean-up must not be disturbed."""
        if self.task and not self._dropped and not self.ended.done():
            self._dropped = True
            self.task.cancel()

    def keys_of(self, fingerprint: str) -> PairKeys:
        """Make the keys of the same pairs for another model, once."""
        if fingerprint not in self._other_keys:
            self._other_keys[fingerprint] = self.keys.under(fingerprint)
        return self._other_keys[fingerprint]

    @property
    def under_way(self) -> set[bytes]:
        """Pairs that are with a Scorer at the moment: it will score them, wanted or not."""
        return {self.keys.pairs[place] for places in self.calls.values() for place in places}

    @property
    def unanswered(self) -> list[bytes]:
        """Pairs nobody was told about."""
        return [key for key, answer in self.answers.items() if not answer.done()]

    def answer(self, key: bytes, answer: Answer | None) -> None:
        """Tell everybody; the first word counts."""
        if not self.answers[key].done():
            self.answers[key].set_result(answer)

    def fail(self, key: bytes, error: Exception) -> None:
        """Tell everybody that this pair cannot be scored, now or if tried again."""
        if not self.answers[key].done():
            self.answers[key].set_exception(error)
            self.answers[key].exception()  # looked at, so that asyncio does not miss a reader where nobody waits

    def end(self, error: Exception | None = None) -> None:
        """Tell the one who began it how it went; the first word counts."""
        if not self.ended.done():
            self.error = error
            self.ended.set_result(None if error else True)


async def until_settled(futures: Collection[asyncio.Future[Any]], *, timeout_seconds: float) -> None:
    """Wait until all are settled, or one was given up or failed, or the time is up."""
    waiting = [future for future in futures if not future.done()]
    if len(waiting) < len(futures) and any(was_given_up(future) for future in futures):
        return
    enough: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    left = len(waiting)

    def settled(future: asyncio.Future[Any]) -> None:
        nonlocal left
        left -= 1
        if (not left or was_given_up(future)) and not enough.done():
            enough.set_result(None)

    for future in waiting:
        future.add_done_callback(settled)
    try:
        if waiting:
            await asyncio.wait({enough}, timeout=timeout_seconds)
    finally:
        for future in waiting:
            future.remove_done_callback(settled)


def was_given_up(future: asyncio.Future[Any]) -> bool:
    """Tell whether it was given up or failed; false while it is open."""
    return future.done() and (future.cancelled() or future.exception() is not None or future.result() is None)
