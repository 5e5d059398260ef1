"""Whose call goes to which Scorer next.

Calls take turns in the order they come, and only a running and a waiting Scorer batch are under way, so that what is dropped, late or new
is dropped, late or next where it waits, and not in BentoML's queue.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter, deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from bento_service.errors import ScorerDown
from bento_service.pace import Pace
from bento_service.scorer_link import ScorerLink

MAX_CALL_PAIRS = 32
_BATCHES_UNDER_WAY = 2
# Of a batch, kept for requests of which nothing is under way: they join the waiting one, however big those before them are.
_KEPT_SHARE = 0.25
# For so long after one of them came, a big request has one call in a batch: small ones wait for a batch and ride in the next.
_COMPANY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class CallTurn:
    """A call's turn. size: pairs · request: whose it is · first: of its request · given: the Scorer that it may go to."""

    size: int
    request: Hashable
    first: bool
    given: asyncio.Future[ScorerLink]

    @property
    def link(self) -> ScorerLink:
        """The Scorer, once the turn has come."""
        return self.given.result()


@dataclass(slots=True)
class _UnderWay:
    """Pairs that are with a Scorer. waiting: those of its waiting batch, by request · begun: when the latest batch did of which we heard, on its clock."""

    pairs: int = 0
    waiting: Counter[Hashable] = field(default_factory=Counter)
    begun: float = 0.0

    def add(self, turn: CallTurn) -> None:
        """Send pairs; an idle Scorer begins with them at once."""
        if self.pairs:
            self.waiting[turn.request] += turn.size
        self.pairs += turn.size

    def remove(self, turn: CallTurn, size: int, begun: float) -> None:
        """Have pairs back. begun: when their batch did, at whose end all that waited began; 0 if they were in none."""
        self.pairs -= size
        if begun > self.begun or not self.pairs:
            self.begun = max(begun, self.begun)
            self.waiting.clear()
        elif not begun and turn.request in self.waiting:
            self.waiting[turn.request] = max(0, self.waiting[turn.request] - size)


class CallTurns:
    """Hands calls to the Scorer that has the least under way. entry_workers: how many processes share the Scorers."""

    def __init__(self, links: Sequence[ScorerLink], *, entry_workers: int) -> None:
        self._links = links
        self._entry_workers = entry_workers
        self._under_way = {link: _UnderWay() for link in links}
        # Breaks ties, so that sequential requests use every Scorer; a random start, since entry workers do not know of each other.
        self._sent_pairs = {link: random.randrange(MAX_CALL_PAIRS) for link in links}  # noqa: S311  no secret
        self._queue: deque[CallTurn] = deque()
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
        """Pairs of a call: at most 32, and less where a slow model takes a quarter of a second for fewer.

        Where a big request's share of a batch is more, as many calls of a size as fill it, so that batches are alike.
        """
        slowest = max(1, min((link.batch_pairs for link in self._links if link.up), default=MAX_CALL_PAIRS))
        share = int(slowest * (1 - _KEPT_SHARE))
        return min(MAX_CALL_PAIRS, slowest) if share <= MAX_CALL_PAIRS else share // math.ceil(share / MAX_CALL_PAIRS)

    @property
    def up(self) -> bool:
        """Whether a Scorer answers."""
        return any(link.up for link in self._links)

    def waiting(self) -> Iterator[CallTurn]:
        """Go through the turns that have not come."""
        return (turn for turn in self._queue if not turn.given.done())

    def has_room(self, size: int) -> bool:
        """Tell whether a call of so many pairs would have its turn at once."""
        return not self._queue and self._room_for(size, first=True) is not None

    async def take(self, size: int, *, request: Hashable, first: bool = False) -> CallTurn:
        """Wait for a turn; it is to be given back. Raises ScorerDown when the last Scorer goes away."""
        turn = CallTurn(size, request, first, asyncio.get_running_loop().create_future())
        if first and self.under_way_pairs:
            self._company_until = time.monotonic() + _COMPANY_SECONDS
        self._queue.append(turn)
        self._hand_out()
        try:
            await turn.given
        except asyncio.CancelledError:
            if turn.given.done() and not turn.given.cancelled() and turn.given.exception() is None:
                self.give_back(turn, size)
            turn.given.cancel()
            raise
        return turn

    def give_back(self, turn: CallTurn, size: int, *, begun: float = 0.0) -> None:
        """End what a turn was taken for, or a part of it. begun: when its batch did, on the Scorer's clock; 0 if it was in vain."""
        self._under_way[turn.link].remove(turn, size, begun)
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
        """Find whose turn it is: the oldest's, or while a big request's next call finds no room, some requests' that have nothing under way."""
        while self._queue and self._queue[0].given.done():
            self._queue.popleft()
        oldest = next((turn for turn in self.waiting() if not self._has_its_call(turn)), None)
        if oldest is None:
            return None
        if link := self._room_for(oldest.size, first=oldest.first):
            self._overtaken_pairs = 0
            return oldest, link
        if oldest.first:
            return None
        new = next((turn for turn in self.waiting() if turn.first), None)
        # No more than one call's worth, or many small requests would keep a big one waiting for ever.
        if new is None or self._overtaken_pairs + new.size > MAX_CALL_PAIRS:
            return None
        if link := self._room_for(new.size, first=True):
            self._overtaken_pairs += new.size
            return new, link
        return None

    def _has_its_call(self, turn: CallTurn) -> bool:
        """Tell whether a request in company has a call in each waiting batch already."""
        if turn.first or time.monotonic() >= self._company_until:
            return False
        return all(self._under_way[link].waiting[turn.request] for link in self._links if link.up)

    def _room_for(self, size: int, *, first: bool) -> ScorerLink | None:
        open_links = [link for link in self._links if link.up and self._has_room(link, size, first=first)]
        return min(open_links, key=lambda link: (self._under_way[link].pairs, self._sent_pairs[link]), default=None)

    def _has_room(self, link: ScorerLink, size: int, *, first: bool) -> bool:
        batch, under_way = link.batch_pairs / self._entry_workers, self._under_way[link]
        if not under_way.pairs:
            return True
        waiting, share = under_way.waiting.total(), batch if first else batch * (1 - _KEPT_SHARE)
        # The waiting batch keeps to its share by itself, or one that got more would be followed by one that has less, and so on for ever.
        return (not waiting or waiting + size <= share) and under_way.pairs + size <= _BATCHES_UNDER_WAY * batch
