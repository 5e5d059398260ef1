"""The bounded queue between requests and Scorers, kept in the entry because BentoML's can neither drop nor reorder.

A request's pairs go out in calls of at most 32; requests take turns call by call; only a running and a waiting
Scorer batch are under way. What a caller abandons while it waits here is never computed.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bento_service.errors import DeadlinePassed, QueueFull, ScorerDown, ScorerFailed
from bento_service.metrics import EntryMetrics
from bento_service.pairs import Outcome, PairScore
from bento_service.scorer_link import ScorerLink

MAX_CALL_PAIRS = 32
OnCall = Callable[[Sequence[int], asyncio.Task[list[PairScore]]], None]
_BATCHES_UNDER_WAY = 2


@dataclass(slots=True)
class Place:
    """What one request holds of the queue. pairs: windows of long documents count as such."""

    pairs: int = 0


class Admission:
    """Hands pairs to the Scorer that has the least under way.

    entry_workers: how many processes share the Scorers · max_queue_pairs: waiting and under way, this process.
    """

    def __init__(self, links: Sequence[ScorerLink], *, entry_workers: int, max_queue_pairs: int, metrics: EntryMetrics) -> None:
        self._links = links
        self._metrics = metrics
        self._entry_workers = entry_workers
        self._max_queue_pairs = max_queue_pairs
        self._queued_pairs = 0
        self._under_way = dict.fromkeys(links, 0)
        # Breaks ties, so that sequential requests use every Scorer; a random start, since entry workers do not know of each other.
        self._sent_pairs = {link: random.randrange(MAX_CALL_PAIRS) for link in links}  # noqa: S311  no secret
        self._turns: deque[tuple[int, asyncio.Future[ScorerLink]]] = deque()
        self._calls: set[asyncio.Task[list[PairScore]]] = set()

    @property
    def queued_pairs(self) -> int:
        """Pairs that have a place, from before they are tokenised until they are answered."""
        return self._queued_pairs

    @contextlib.contextmanager
    def place_for(self, pairs: int, place: Place | None = None) -> Iterator[None]:
        """Hold a place in the queue for some of a request's pairs, beside those that it holds already.

        Raises QueueFull where there is none, ScorerDown without a Scorer. A request that waits alone is never refused.
        """
        self.require_scorer()
        place = place or Place()
        if self._queued_pairs > place.pairs and self._queued_pairs + pairs > self._max_queue_pairs:
            raise QueueFull(
                "too many documents wait to be scored: try again after Retry-After seconds",
                retry_after_seconds=self._drain_seconds(),
            )
        with self.held(pairs, place):
            yield

    @contextlib.contextmanager
    def held(self, pairs: int, place: Place) -> Iterator[None]:
        """Count pairs as queued, refusing nobody: also the windows of long documents, which only tokenising tells."""
        self._queued_pairs += pairs
        place.pairs += pairs
        try:
            yield
        finally:
            self._queued_pairs -= pairs
            place.pairs -= pairs

    def seconds_for(self, pairs: int) -> float:
        """Estimate how long so many more pairs would take by now; 0 while the speed is unknown."""
        rate = sum(link.pairs_per_second for link in self._links if link.up) / self._entry_workers
        if not rate:
            return 0.0
        # Requests take turns: each that waits gets a call in before each of ours.
        calls = math.ceil(pairs / self._call_pairs())
        before = sum(self._under_way.values()) + calls * sum(size for size, turn in self._turns if not turn.done())
        return (before + pairs) / rate

    async def score(
        self,
        blobs: Sequence[bytes],
        *,
        deadline: float,
        wanted: Callable[[int], bool] = lambda _: True,
        on_call: OnCall = lambda *_: None,
    ) -> list[PairScore]:
        """Score packed pairs that have a place, in the order given.

        wanted: asked of each pair's place when its turn comes; what is not wanted any more is left out of the answer, too ·
        on_call: told of each call as it goes out, with its pairs' places; the call goes on when this is cancelled. Cancelling drops
        what still waits. Raises ScorerDown, DeadlinePassed or ScorerFailed.
        """
        self.require_scorer()
        if deadline <= time.monotonic():
            raise deadline_passed()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                scores = await self._in_turns(blobs, wanted, on_call)
        except TimeoutError:
            raise deadline_passed() from None
        _check(scores)
        return scores

    def require_scorer(self) -> None:
        """Raise ScorerDown unless a Scorer answers."""
        if not any(link.up for link in self._links):
            raise ScorerDown(
                "the model is not being served at the moment: try again after Retry-After seconds", retry_after_seconds=5
            )

    def wake(self) -> None:
        """Look at the turns again: a Scorer came or went."""
        # A Scorer that was away catches up with the count here, or it would get every tie until it has.
        least = max(self._sent_pairs.values(), default=0) - MAX_CALL_PAIRS
        self._sent_pairs = {link: max(sent, least) for link, sent in self._sent_pairs.items()}
        self._hand_out()

    def _hand_out(self) -> None:
        """Give turns while there is room; without a Scorer nobody gets one."""
        if not any(link.up for link in self._links):
            for _, turn in self._turns:
                if not turn.done():
                    turn.set_exception(
                        ScorerDown("the model went away: try again after Retry-After seconds", retry_after_seconds=5)
                    )
        while self._turns:
            size, turn = self._turns[0]
            if not turn.done():
                link = self._room_for(size)
                if link is None:
                    return
                self._under_way[link] += size
                self._sent_pairs[link] += size
                turn.set_result(link)
            self._turns.popleft()

    async def _in_turns(self, blobs: Sequence[bytes], wanted: Callable[[int], bool], on_call: OnCall) -> list[PairScore]:
        """Queue one call at a time, so that a big request stands in the queue only once and others get their turn."""
        calls: list[asyncio.Task[list[PairScore]]] = []
        begin = time.monotonic()
        state = self._metrics.requests_waiting
        state.inc()
        try:
            rest = list(range(len(blobs)))
            while rest:
                size = min(len(rest), self._call_pairs())
                link = await self._turn(size)
                rest = [place for place in rest if wanted(place)]
                chunk, rest = rest[:size], rest[size:]
                if len(chunk) < size:
                    self._give_back(link, size - len(chunk))
                if not chunk:
                    break
                if not calls:
                    self._metrics.stage_seconds.labels("queue").observe(time.monotonic() - begin)
                    state.dec()
                    state = self._metrics.requests_active
                    state.inc()
                calls.append(self._call(link, [blobs[place] for place in chunk]))
                on_call(chunk, calls[-1])
                _raise_first_failure(calls)
            # Shielded: a call under way is computed whether or not its caller stays, and holds its place until then.
            return [score for scores in await asyncio.gather(*map(asyncio.shield, calls)) for score in scores]
        finally:
            state.dec()
            for call in calls:
                call.add_done_callback(_retrieve)

    async def _turn(self, size: int) -> ScorerLink:
        turn: asyncio.Future[ScorerLink] = asyncio.get_running_loop().create_future()
        self._turns.append((size, turn))
        self._hand_out()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._give_back(turn.result(), size)
            turn.cancel()
            raise

    def _call(self, link: ScorerLink, chunk: Sequence[bytes]) -> asyncio.Task[list[PairScore]]:
        self._metrics.scorer_calls.labels(str(self._links.index(link))).inc()
        call = asyncio.create_task(link.score(list(chunk)))
        self._calls.add(call)  # the loop itself keeps only weak references

        def ended(done: asyncio.Task[list[PairScore]]) -> None:
            self._calls.discard(done)
            self._give_back(link, len(chunk))

        call.add_done_callback(ended)
        return call

    def _give_back(self, link: ScorerLink, size: int) -> None:
        self._under_way[link] -= size
        self._hand_out()

    def _room_for(self, size: int) -> ScorerLink | None:
        open_links = [link for link in self._links if link.up and self._has_room(link, size)]
        return min(open_links, key=lambda link: (self._under_way[link], self._sent_pairs[link]), default=None)

    def _has_room(self, link: ScorerLink, size: int) -> bool:
        share = _BATCHES_UNDER_WAY * link.batch_pairs / self._entry_workers
        under_way = self._under_way[link]
        return under_way == 0 or under_way + size <= share

    def _call_pairs(self) -> int:
        """At most 32, and less where a slow model takes half a second for fewer."""
        slowest = min((link.batch_pairs for link in self._links if link.up), default=MAX_CALL_PAIRS)
        return max(1, min(MAX_CALL_PAIRS, slowest))

    def _drain_seconds(self) -> int:
        """How long the queue takes at the measured speed, as a whole number of seconds of at least 1."""
        rate = sum(link.pairs_per_second for link in self._links if link.up) / self._entry_workers
        return max(1, math.ceil(self._queued_pairs / rate)) if rate else 1


def _check(scores: Sequence[PairScore]) -> None:
    if any(score.outcome is Outcome.LATE for score in scores):
        raise deadline_passed()
    if any(score.failed for score in scores):
        raise scoring_failed()


def scoring_failed() -> ScorerFailed:
    """Build the error of a pair that has no score."""
    return ScorerFailed("a document could not be scored: the model gave no finite number, or ran out of memory")


def deadline_passed() -> DeadlinePassed:
    """Build the error of a request whose time ran out."""
    return DeadlinePassed("the request's time ran out: send fewer documents at once, or raise RERANKER_REQUEST_TIMEOUT")


def _raise_first_failure(calls: Sequence[asyncio.Task[list[PairScore]]]) -> None:
    for call in calls:
        if call.done() and (error := call.exception()):
            raise error


def _retrieve(call: asyncio.Task[list[PairScore]]) -> None:
    """Look at an abandoned call's exception, so that asyncio does not log it as never retrieved."""
    if not call.cancelled():
        call.exception()
