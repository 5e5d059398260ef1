"""Whose call goes to which Scorer next.

The oldest call that may go goes, and only a running and a waiting Scorer batch are under way, so that what is dropped, late or new
is dropped, late or next where it waits, and not in BentoML's queue.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bento_service.errors import ScorerDown
from bento_service.pace import Pace
from bento_service.scorer_link import ScorerLink

MAX_CALL_PAIRS = 32
_BATCHES_UNDER_WAY = 2
# Of a batch, kept for requests of which nothing is under way: they join the waiting one, however big those before them are.
_KEPT_SHARE = 0.25
# While a small request comes beside others, and for so long after it has ended, later calls of each in a batch are one, or as many as take
# this long: what comes next waits for that batch and rides in the one after it.
_COMPANY_SECONDS = 1.0
_COMPANY_BATCH_SECONDS = 0.1
_LEAST_CALL_PAIRS = 8  # or big requests would hardly get on beside small ones that fill what they leave


@dataclass(frozen=True, slots=True, eq=False)
class CallTurn:
    """A call's turn. size: pairs · request: whose it is · first: of its request · given: the Scorer that it may go to."""

    size: int
    request: object
    first: bool
    given: asyncio.Future[ScorerLink]

    @property
    def link(self) -> ScorerLink:
        """The Scorer, once the turn has come."""
        return self.given.result()


@dataclass(slots=True)
class _UnderWay:
    """Pairs that are with a Scorer. waiting: those of its waiting batch · latest: when the latest batch began of which calls came back, on its clock."""

    pairs: int = 0
    waiting: dict[CallTurn, int] = field(default_factory=dict)
    latest: float = 0.0

    def add(self, turn: CallTurn) -> None:
        """Send pairs; a Scorer that has none of ours begins with them, or nearly so."""
        if self.pairs:
            self.waiting[turn] = turn.size
        self.pairs += turn.size

    def remove(self, turn: CallTurn, size: int, begun: float) -> None:
        """Have pairs back. begun: when their batch did; 0 if they were not sent, or failed."""
        self.pairs -= size
        if turn in self.waiting:
            self.waiting[turn] -= size
        # At the end of a batch all that waited began, but for what was still on its way; and so it did if nothing else is left.
        if begun > self.latest or self.pairs == sum(self.waiting.values()):
            self.latest = max(begun, self.latest)
            self.waiting.clear()

    def has_room(self, size: int, batch: float, most: float, *, first: bool) -> bool:
        """Tell whether a call may be sent, too. batch: pairs of one, about · most: of one, at most."""
        if not self.pairs:
            return True
        # Half a call over in each, as long as BentoML joins that.
        if self.pairs + size > _BATCHES_UNDER_WAY * min(batch + min(batch, MAX_CALL_PAIRS) / 2, most):
            return False
        waiting = sum(self.waiting.values())
        if not waiting:
            return True
        # The waiting batch has its bound to itself, or one that got more would be followed by one that has less, and so on for ever.
        if first:
            # Whole requests mostly, of any size: as near to a batch as they come, or it would be short of half a call on average.
            return waiting + size / 2 <= batch and waiting + size <= most
        later = size + sum(pairs for turn, pairs in self.waiting.items() if not turn.first)
        return waiting + size <= batch and later <= batch * (1 - _KEPT_SHARE)


class CallTurns:
    """Hands calls to the Scorer that has the least under way. entry_workers: how many processes share the Scorers."""

    def __init__(self, links: Sequence[ScorerLink], *, entry_workers: int) -> None:
        self._links = links
        self._entry_workers = entry_workers
        self._under_way = {link: _UnderWay() for link in links}
        # Breaks ties, so that sequential requests use every Scorer; a random start, since entry workers do not know of each other.
        self._sent_pairs = {link: random.randrange(MAX_CALL_PAIRS) for link in links}  # noqa: S311  no secret
        self._queue: deque[CallTurn] = deque()
        # First calls of small requests that came while others were under way, and what of them has not ended; and until when they are reckoned with.
        self._company: dict[CallTurn, int] = {}
        self._company_until = 0.0
        self._overtaken_pairs = 0
        self._pace = Pace()

    @property
    def under_way_pairs(self) -> int:
        """Pairs that are with a Scorer."""
        return sum(under_way.pairs for under_way in self._under_way.values())

    @property
    def pairs_per_second(self) -> float:
        """How fast pairs come back: as measured while there is work, at least one entry worker's share of the Scorers' speed; 0 while that is unknown."""
        speed = sum(link.pairs_per_second for link in self._links if link.up)
        return min(speed, max(speed / self._entry_workers, self._pace.pairs_per_second))

    @property
    def batch_pairs(self) -> float:
        """Pairs of a batch on each Scorer together, and of them the share of one entry worker."""
        return sum(link.batch_pairs for link in self._links if link.up) / self._entry_workers

    @property
    def call_pairs(self) -> int:
        """Pairs of a big request's call: at most 32, and less where a slow model takes a quarter of a second for fewer.

        Where its share of a batch is more, as many calls of a size as fill it, so that batches are alike. In company, as many as a batch then has of it,
        unless the small ones fill batches by themselves.
        """
        alone = most = self._most_call_pairs
        speed = min((link.pairs_per_second for link in self._links if link.up), default=0.0)
        if speed and self._in_company() and sum(self._company.values()) < self.batch_pairs:
            most = min(alone, max(1, int(self._company_pairs(speed))))
        share = int(self._slowest_batch / self._entry_workers * (1 - _KEPT_SHARE))
        pairs = most if share <= most else share // math.ceil(share / most)
        return max(pairs, min(alone, _LEAST_CALL_PAIRS))

    def first_call_pairs(self, pairs: int) -> int:
        """Pairs of the first call of a request with so many: all of them if they fit into one."""
        return pairs if pairs <= self._most_call_pairs else self.call_pairs

    @property
    def _slowest_batch(self) -> int:
        return max(1, min((link.batch_pairs for link in self._links if link.up), default=MAX_CALL_PAIRS))

    @property
    def _most_call_pairs(self) -> int:
        return min(MAX_CALL_PAIRS, self._slowest_batch)

    @property
    def up(self) -> bool:
        """Whether a Scorer answers."""
        return any(link.up for link in self._links)

    def waiting(self) -> Iterator[CallTurn]:
        """Go through the turns that have not come."""
        return (turn for turn in self._queue if not turn.given.done())

    def has_room(self, size: int) -> bool:
        """Tell whether a request's first call, of so many pairs, would have its turn at once."""
        in_company = self._in_company()
        before = [turn for turn in self.waiting() if not (in_company and self._has_its_call(turn))]
        if any(turn.first for turn in before) or (before and self._overtaken_pairs + size > MAX_CALL_PAIRS):
            return False
        return self._room_for(size) is not None

    async def take(self, size: int, *, request: object, first: bool = False, small: bool = False) -> CallTurn:
        """Wait for a turn; it is to be given back. small: a call's worth is all there is of its request. Raises ScorerDown when the last Scorer goes away."""
        # Of a request's queries that wait together, one is its first.
        first = first and not any(turn.first and turn.request is request for turn in self.waiting())
        turn = CallTurn(size, request, first, asyncio.get_running_loop().create_future())
        if first and small and self.under_way_pairs:
            self._company[turn] = size
        self._queue.append(turn)
        self._hand_out()
        try:
            await turn.given
        except asyncio.CancelledError:
            self._company.pop(turn, None)
            if turn.given.done() and not turn.given.cancelled() and turn.given.exception() is None:
                self.give_back(turn, size)
            turn.given.cancel()
            raise
        return turn

    def give_back(self, turn: CallTurn, size: int, *, begun: float = 0.0) -> None:
        """End what a turn was taken for, or a part of it. begun: when its batch did, on the Scorer's clock; 0 if it was in vain."""
        self._under_way[turn.link].remove(turn, size, begun)
        if turn in self._company:
            self._company[turn] -= size
            if not self._company[turn]:
                del self._company[turn]
                self._company_until = time.monotonic() + _COMPANY_SECONDS
        if begun:
            self._pace.done(size)
        if not self.under_way_pairs:
            self._pace.end()
        self._hand_out()

    def wake(self) -> None:
        """Look again: a Scorer came or went."""
        # A Scorer that was away catches up with the count here, or it would get every tie until it has.
        least = max(self._sent_pairs.values(), default=0) - MAX_CALL_PAIRS
        self._sent_pairs = {link: max(sent, least) for link, sent in self._sent_pairs.items()}
        self._hand_out()

    def _hand_out(self) -> None:
        """Give turns while there is room; without a Scorer nobody gets one."""
        if not self.up:
            self._company.clear()
            for turn in self.waiting():
                turn.given.set_exception(
                    ScorerDown("the model went away: try again after Retry-After seconds", retry_after_seconds=5)
                )
        while (found := self._next()) is not None:
            turn, link = found
            self._queue.remove(turn)
            self._pace.begin()
            self._under_way[link].add(turn)
            self._sent_pairs[link] += turn.size
            turn.given.set_result(link)

    def _next(self) -> tuple[CallTurn, ScorerLink] | None:
        """Find whose turn it is: the oldest's that may go, or while it finds no room, some requests' that have nothing under way."""
        while self._queue and self._queue[0].given.done():
            self._queue.popleft()
        in_company = self._in_company()
        for oldest in self.waiting():
            if link := self._room_for(oldest.size, None if oldest.first else oldest, in_company=in_company):
                self._overtaken_pairs = 0
                return oldest, link
            if not (in_company and self._has_its_call(oldest)):
                break
        else:
            return None
        if oldest.first:
            return None
        new = next((turn for turn in self.waiting() if turn.first), None)
        # No more than 32, or many small requests would keep a big one waiting for ever.
        if new is None or self._overtaken_pairs + new.size > MAX_CALL_PAIRS:
            return None
        if link := self._room_for(new.size):
            self._overtaken_pairs += new.size
            return new, link
        return None

    def _in_company(self) -> bool:
        return bool(self._company) or time.monotonic() < self._company_until

    def _has_its_call(self, turn: CallTurn) -> bool:
        """Tell whether company keeps a request's next call out of a waiting batch, so that others may pass it."""
        return not turn.first and any(link.up and not self._leaves_room(link, turn) for link in self._links)

    def _leaves_room(self, link: ScorerLink, turn: CallTurn) -> bool:
        """Tell whether a request's next call would leave the waiting batch short enough for company."""
        has = sum(pairs for other, pairs in self._under_way[link].waiting.items() if other.request is turn.request)
        return not has or has + turn.size <= self._company_pairs(link.pairs_per_second)

    def _company_pairs(self, pairs_per_second: float) -> float:
        """Pairs that company leaves a request of a waiting batch, at a Scorer's speed."""
        return _COMPANY_BATCH_SECONDS * pairs_per_second / self._entry_workers

    def _room_for(self, size: int, later: CallTurn | None = None, *, in_company: bool = False) -> ScorerLink | None:
        """Find the Scorer that has least under way among those with room for a call. later: whose it is, unless it is a request's first."""
        open_links = [
            link
            for link in self._links
            if link.up
            and self._under_way[link].has_room(
                size, link.batch_pairs / self._entry_workers, link.most_batch_pairs / self._entry_workers, first=later is None
            )
            and (later is None or not in_company or self._leaves_room(link, later))
        ]
        return min(open_links, key=lambda link: (self._under_way[link].pairs, self._sent_pairs[link]), default=None)
