"""The bounded queue between requests and Scorers, kept in the entry because BentoML's can neither drop nor reorder.

A request's pairs go out in calls of at most 32; requests take turns call by call; only a running and a waiting
Scorer batch are under way. What a caller abandons while it waits here is never computed.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from bento_service.call_turns import CallTurn, CallTurns
from bento_service.errors import DeadlinePassed, QueueFull, QueueTimeout, ScorerDown, ScorerFailed
from bento_service.metrics import EntryMetrics
from bento_service.pair_limit import PairLimit
from bento_service.pairs import Outcome, PairScore
from bento_service.scorer_link import ScorerLink

OnCall = Callable[[Sequence[int], asyncio.Task[list[PairScore]]], None]


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much of an entry worker's queue there is.

    pairs: waiting and under way · requests: of which nothing is under way yet · parallel: requests with something under way, None for
    no limit · wait_seconds: until something is · target_seconds: until first scores, kept by taking fewer pairs; None to take `pairs`.
    """

    pairs: int = 20_000
    requests: int = 1000
    parallel: int | None = None
    wait_seconds: float = 30.0
    target_seconds: float | None = None


@dataclass(slots=True)
class Place:
    """What one request holds of the queue, for all of its queries together.

    pairs: windows of long documents count as such · first: of its first call while that waits · arrived, begun: whether it was let in, and has
    had a turn · slot: whether it holds one · slot_turn: only one of its queries asks for that.
    """

    pairs: int = 0
    first: int = 0
    arrived: bool = False
    begun: bool = False
    slot: bool = False
    slot_turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Admission:
    """Holds requests within their bounds until the Scorers have scored their pairs.

    entry_workers: how many processes share the Scorers · bounds: of this process.
    """

    def __init__(self, links: Sequence[ScorerLink], *, entry_workers: int, bounds: Bounds, metrics: EntryMetrics) -> None:
        self._links = links
        self._turns = CallTurns(links, entry_workers=entry_workers)
        self._metrics = metrics
        self._bounds = bounds
        self._limit = PairLimit(bounds.pairs, target_seconds=bounds.target_seconds)
        self._queued_pairs = 0
        self._waiting_requests = 0
        self._waiting_first_pairs = 0
        self._slots = asyncio.Semaphore(bounds.parallel) if bounds.parallel else None
        self._calls: set[asyncio.Task[list[PairScore]]] = set()

    @property
    def limit_pairs(self) -> int:
        """Pairs that may have a place at the moment."""
        return self._limit.pairs

    @property
    def queued_pairs(self) -> int:
        """Pairs that have a place, from before they are tokenised until they are answered."""
        return self._queued_pairs

    @contextlib.contextmanager
    def place_for(self, pairs: int, place: Place | None = None) -> Iterator[None]:
        """Hold a place in the queue for some of a request's pairs, beside those that it holds already.

        Raises QueueFull where there is none, QueueTimeout where the wait would be too long, ScorerDown without a Scorer. A request that
        nothing stands before is never refused.
        """
        place = place or Place()
        self.check_room(pairs, place)
        arrives, place.arrived = not place.arrived, True
        if arrives:
            self._waits(place, pairs)
        try:
            with self.held(pairs, place):
                yield
        finally:
            if arrives:
                self._begun(place)

    def check_room(self, pairs: int, place: Place) -> None:
        """Raise what place_for() would by now, if anything."""
        self.require_scorer()
        if self._queued_pairs <= place.pairs:
            return
        over_pairs = self._queued_pairs + pairs - self._limit.pairs
        if over_pairs > 0:
            raise QueueFull(
                "too many documents wait to be scored: try again after Retry-After seconds",
                retry_after_seconds=self._whole_seconds(over_pairs),
            )
        if place.arrived:
            return
        if self._waiting_requests >= self._bounds.requests and not self._begins_at_once(pairs):
            raise QueueFull(
                "too many requests wait to be scored: try again after Retry-After seconds",
                retry_after_seconds=self._next_begins_seconds(),
            )
        over_seconds = self._wait_seconds() - self._bounds.wait_seconds
        if over_seconds > 0:
            raise _waited_too_long(over_seconds)

    def _next_begins_seconds(self) -> int:
        """Estimate when the next of those that wait begins: once a request of middling size has ended where slots are what it wants."""
        return self._whole_seconds(self._pairs_of(1) if self._slots_taken else self._turns.under_way_pairs)

    @property
    def _slots_taken(self) -> bool:
        return self._slots is not None and self._slots.locked()

    def _pairs_of(self, requests: int) -> int:
        """Pairs of so many of the requests that wait or have a slot, as if each was of middling size."""
        return self._queued_pairs * requests // (self._waiting_requests + (self._bounds.parallel or 1))

    def _begins_at_once(self, pairs: int) -> bool:
        """Tell whether nothing stands before a request that arrives now."""
        if self._waiting_requests or self._slots_taken:
            return False
        return self._turns.has_room(self._turns.first_call_pairs(pairs))

    def _wait_seconds(self) -> float:
        """Estimate how long the work of others would keep a request that arrives now; 0 while the speed is unknown."""
        rate = self._turns.pairs_per_second
        if self._slots_taken:
            # As many must come to an end as wait before it, and one that has a slot.
            ahead = self._pairs_of(self._waiting_requests + 1)
        else:
            ahead = self._waiting_first_pairs + self._turns.under_way_pairs
            ahead += sum(turn.size for turn in self._turns.waiting() if not turn.first)
        # Those behind it ride in the same batch, as many as are before it if it comes to that.
        return (ahead + min(ahead, self._turns.batch_pairs)) / rate if rate else 0.0

    def _waits(self, place: Place, pairs: int) -> None:
        """Count a request as waiting."""
        place.first = self._turns.first_call_pairs(pairs)
        self._waiting_requests += 1
        self._waiting_first_pairs += place.first

    def _begun(self, place: Place) -> None:
        """Count a request as waiting no longer."""
        self._waiting_requests -= place.first > 0
        self._waiting_first_pairs -= place.first
        place.first = 0

    @contextlib.contextmanager
    def held(self, pairs: int, place: Place) -> Iterator[None]:
        """Count pairs as queued, refusing nobody: also the windows of long documents, which only tokenising tells, fewer than thought included."""
        self._queued_pairs += pairs
        place.pairs += pairs
        self._metrics.queue_pairs.set(self._queued_pairs)
        try:
            yield
        finally:
            self._queued_pairs -= pairs
            place.pairs -= pairs
            self._metrics.queue_pairs.set(self._queued_pairs)
            if not place.pairs:
                self._release_slot(place)

    def seconds_for(self, pairs: int) -> float:
        """Estimate how long so many more pairs would take by now; 0 while the speed is unknown."""
        rate = self._turns.pairs_per_second
        if not rate:
            return 0.0
        # Requests take turns: each that waits gets a call in before each of ours.
        calls = math.ceil(pairs / self._turns.call_pairs)
        before = self._turns.under_way_pairs + calls * sum(turn.size for turn in self._turns.waiting())
        return (before + pairs) / rate

    async def score(
        self,
        blobs: Sequence[bytes],
        *,
        deadline: float,
        place: Place | None = None,
        wanted: Callable[[int], bool] = lambda _: True,
        on_call: OnCall = lambda *_: None,
    ) -> list[PairScore]:
        """Score packed pairs that have a place, in the order given.

        place: as place_for() was given · wanted: asked of each pair's place when its turn comes; what is not wanted any more is left out
        of the answer, too · on_call: told of each call as it goes out, with its pairs' places; the call goes on when this is cancelled. Cancelling drops
        what still waits. Raises QueueTimeout, ScorerDown, DeadlinePassed or ScorerFailed.
        """
        self.require_scorer()
        if deadline <= time.monotonic():
            raise deadline_passed()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                scores = await self._in_turns(blobs, place or Place(), wanted, on_call)
        except TimeoutError:
            raise deadline_passed() from None
        _check(scores)
        return scores

    def require_scorer(self) -> None:
        """Raise ScorerDown unless a Scorer answers."""
        if not self._turns.up:
            raise ScorerDown(
                "the model is not being served at the moment: try again after Retry-After seconds", retry_after_seconds=5
            )

    def wake(self) -> None:
        """Look at the turns again: a Scorer came or went."""
        self._turns.wake()

    async def _in_turns(
        self, blobs: Sequence[bytes], place: Place, wanted: Callable[[int], bool], on_call: OnCall
    ) -> list[PairScore]:
        """Queue one call at a time, so that a big request stands in the queue only once and others get their turn."""
        begin, queued_pairs = time.monotonic(), self._queued_pairs
        self._metrics.queued_pairs.inc(len(blobs))
        with self._metrics.waiting():
            turn = await self._first_turn(self._turns.first_call_pairs(len(blobs)), place)
        self._begun(place)
        self._metrics.stage("queue", begin)
        calls: list[asyncio.Task[list[PairScore]]] = []

        def learn(call: asyncio.Task[list[PairScore]]) -> None:
            if not call.cancelled() and not call.exception():
                self._limit.observe(time.monotonic() - begin, queued_pairs=queued_pairs, pairs=len(call.result()))
                self._metrics.queue_limit_pairs.set(self._limit.pairs)

        def sent(chunk: Sequence[int], call: asyncio.Task[list[PairScore]]) -> None:
            if len(calls) == 1:
                call.add_done_callback(learn)
            on_call(chunk, call)

        try:
            with self._metrics.requests_active.track_inprogress():
                await self._send_all(blobs, turn, calls, wanted, sent)
                # Shielded: a call under way is computed whether or not its caller stays, and holds its place until then.
                return [score for scores in await asyncio.gather(*map(asyncio.shield, calls)) for score in scores]
        finally:
            for call in calls:
                call.add_done_callback(_retrieve)

    async def _send_all(
        self,
        blobs: Sequence[bytes],
        turn: CallTurn,
        calls: list[asyncio.Task[list[PairScore]]],
        wanted: Callable[[int], bool],
        on_call: OnCall,
    ) -> None:
        """Send call after call, each in its turn, and put them into `calls`. turn: the first, which has come."""
        rest = list(range(len(blobs)))
        while True:
            rest = [number for number in rest if wanted(number)]
            chunk, rest = rest[: turn.size], rest[turn.size :]
            if len(chunk) < turn.size:
                self._turns.give_back(turn, turn.size - len(chunk))
            if not chunk:
                return
            calls.append(self._call(turn, [blobs[number] for number in chunk]))
            on_call(chunk, calls[-1])
            _raise_first_failure(calls)
            if not rest:
                return
            turn = await self._turns.take(min(len(rest), self._turns.call_pairs), request=turn.request)

    async def _first_turn(self, size: int, place: Place) -> CallTurn:
        """Wait for a slot, which its place keeps, and a turn. Raises QueueTimeout."""
        try:
            async with asyncio.timeout(self._bounds.wait_seconds - self._stay_seconds()):
                if self._slots:
                    async with place.slot_turn:
                        if not place.slot:
                            await self._slots.acquire()
                            place.slot = True
                small = self._turns.first_call_pairs(place.pairs) == place.pairs
                turn = await self._turns.take(size, request=place, first=not place.begun, small=small)
                place.begun = True
                return turn
        except TimeoutError:
            raise _waited_too_long(self._wait_seconds() - self._bounds.wait_seconds) from None

    def _stay_seconds(self) -> float:
        """How long pairs still wait when their turn has come: a part of their wait, at most half of what is allowed."""
        rate = self._turns.pairs_per_second
        return min(self._bounds.wait_seconds / 2, self._turns.under_way_pairs / rate) if rate else 0.0

    def _release_slot(self, place: Place) -> None:
        if self._slots and place.slot:
            place.slot = False
            self._slots.release()

    def _call(self, turn: CallTurn, chunk: Sequence[bytes]) -> asyncio.Task[list[PairScore]]:
        self._metrics.scorer_calls.labels(str(self._links.index(turn.link))).inc()
        self._metrics.sent_pairs.inc(len(chunk))
        call = asyncio.create_task(turn.link.score(list(chunk)))
        self._calls.add(call)  # the loop itself keeps only weak references

        def ended(done: asyncio.Task[list[PairScore]]) -> None:
            self._calls.discard(done)
            scores = [] if done.cancelled() or done.exception() else done.result()
            self._turns.give_back(turn, len(chunk), begun=max((score.begun for score in scores), default=0.0))

        call.add_done_callback(ended)
        return call

    def _whole_seconds(self, pairs: int) -> int:
        """How long so many pairs take at the measured speed, as a whole number of seconds of at least 1."""
        rate = self._turns.pairs_per_second
        return max(1, math.ceil(pairs / rate)) if rate else 1


def _check(scores: Sequence[PairScore]) -> None:
    if any(score.outcome is Outcome.LATE for score in scores):
        raise deadline_passed()
    if any(score.failed for score in scores):
        raise scoring_failed()


def scoring_failed() -> ScorerFailed:
    """Build the error of a pair that has no score."""
    return ScorerFailed("a document could not be scored: the model gave no finite number, or ran out of memory")


def _waited_too_long(seconds: float) -> QueueTimeout:
    """Build the error of a request that waited, or would wait, too long. seconds: until one that comes then would not."""
    return QueueTimeout(
        "the queue takes longer than RERANKER_QUEUE_TIMEOUT: try again after Retry-After seconds",
        retry_after_seconds=max(1, math.ceil(seconds)),
    )


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
