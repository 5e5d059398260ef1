"""Whose call goes to which Scorer next.

Calls take turns in the order they come, and only a running and a waiting Scorer batch are under way, so that what is dropped, late or new
is dropped, late or next where it waits, and not in BentoML's queue.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bento_service.errors import ScorerDown
from bento_service.pace import Pace
from bento_service.scorer_link import ScorerLink

MAX_CALL_PAIRS = 32
_BATCHES_UNDER_WAY = 2
# Of what may be under way, kept for requests of which nothing is: they join the waiting batch, however big those before them are.
_KEPT_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class CallTurn:
    """A call's turn. size: pairs · first: of its request · given: the Scorer that it may go to."""

    size: int
    first: bool
    given: asyncio.Future[ScorerLink]

    @property
    def link(self) -> ScorerLink:
        """The Scorer, once the turn has come."""
        return self.given.result()


class CallTurns:
    """Hands calls to the Scorer that has the least under way. entry_workers: how many processes share the Scorers."""

    def __init__(self, links: Sequence[ScorerLink], *, entry_workers: int) -> None:
        self._links = links
        self._entry_workers = entry_workers
        self._under_way = dict.fromkeys(links, 0)
        # Breaks ties, so that sequential requests use every Scorer; a random start, since entry workers do not know of each other.
        self._sent_pairs = {link: random.randrange(MAX_CALL_PAIRS) for link in links}  # noqa: S311  no secret
        self._queue: deque[CallTurn] = deque()
        self._overtaken_pairs = 0
        self._pace = Pace()

    @property
    def under_way_pairs(self) -> int:
        """Pairs that are with a Scorer."""
        return sum(self._under_way.values())

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
        """Pairs of a call: at most 32, and less where a slow model takes a quarter of a second for fewer."""
        slowest = min((link.batch_pairs for link in self._links if link.up), default=MAX_CALL_PAIRS)
        return max(1, min(MAX_CALL_PAIRS, slowest))

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

    async def take(self, size: int, *, first: bool = False) -> CallTurn:
        """Wait for a turn; it is to be given back. Raises ScorerDown when the last Scorer goes away."""
        turn = CallTurn(size, first, asyncio.get_running_loop().create_future())
        self._queue.append(turn)
        self._hand_out()
        try:
            await turn.given
        except asyncio.CancelledError:
            if turn.given.done() and not turn.given.cancelled() and turn.given.exception() is None:
                self.give_back(turn.link, size)
            turn.given.cancel()
            raise
        return turn

    def give_back(self, link: ScorerLink, size: int, *, scored: bool = False) -> None:
        """End what a turn was taken for, or a part of it. scored: it was not in vain."""
        self._under_way[link] -= size
        if scored:
            self._pace.done(size)
        if not any(self._under_way.values()):
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
            self._under_way[link] += turn.size
            self._sent_pairs[link] += turn.size
            turn.given.set_result(link)

    def _next(self) -> tuple[CallTurn, ScorerLink] | None:
        """Find whose turn it is: the oldest's, or while a big request's next call finds no room, some requests' that have nothing under way."""
        while self._queue and self._queue[0].given.done():
            self._queue.popleft()
        if not self._queue:
            return None
        oldest = self._queue[0]
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

    def _room_for(self, size: int, *, first: bool) -> ScorerLink | None:
        open_links = [link for link in self._links if link.up and self._has_room(link, size, first=first)]
        return min(open_links, key=lambda link: (self._under_way[link], self._sent_pairs[link]), default=None)

    def _has_room(self, link: ScorerLink, size: int, *, first: bool) -> bool:
        batch = link.batch_pairs / self._entry_workers
        most = _BATCHES_UNDER_WAY * batch
        if not first:
            # Where a call is nearly a batch, keeping a part free would leave the Scorer without a waiting one.
            most = max(most - min(MAX_CALL_PAIRS, _KEPT_SHARE * most), min(most, batch + size))
        under_way = self._under_way[link]
        return under_way == 0 or under_way + size <= most
