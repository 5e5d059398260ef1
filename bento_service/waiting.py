"""What one request still waits for, and when it has waited for others long enough."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from bento_service.cache.keys import PairKeys
from bento_service.cache.shared import LEASE_SECONDS
from bento_service.errors import ScorerDown
from bento_service.flight import Answer, Flight, Origin, until_settled, was_given_up

_IMPATIENT_LOOK_SECONDS = 0.25


class Waiting:
    """What one request still waits for, and whose flights it has an interest in until it leaves. looked_up: called once the caches have answered."""

    def __init__(
        self,
        keys: PairKeys,
        places: list[int],
        alone_seconds: Callable[[int], float],
        looked_up: Callable[[], None] = lambda: None,
    ) -> None:
        self.keys = keys
        self._looked_up: Callable[[], None] | None = looked_up
        self.rest = places
        self.alone_seconds = alone_seconds
        self.found: dict[int, Answer] = {}
        self.own: list[Flight] = []
        self._flights: dict[int, Flight] = {}
        self._too_slow: dict[bytes, Flight] = {}
        self._joined: set[Flight] = set()
        self._interest = contextlib.ExitStack()
        self.patient_until = time.monotonic() + LEASE_SECONDS + alone_seconds(len(places))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._interest.close()

    def caches_have_answered(self) -> None:
        """Say so, the first time."""
        if self._looked_up:
            self._looked_up()
        self._looked_up = None

    def unowned(self, flights: Mapping[bytes, Flight]) -> list[int]:
        """Find what nobody computes, or somebody for too long or in vain."""
        return [place for place in self.rest if not self._is_owned(self.keys.pairs[place], flights)]

    def _is_owned(self, key: bytes, flights: Mapping[bytes, Flight]) -> bool:
        flight = flights.get(key)
        return flight is not None and flight is not self._too_slow.get(key) and not was_given_up(flight.answers[key])

    def join(self, flights: Mapping[bytes, Flight]) -> None:
        """Have an interest in every flight that computes what is waited for."""
        self._flights = {place: flights[self.keys.pairs[place]] for place in self.rest}
        for flight in set(self._flights.values()) - self._joined:
            self._joined.add(flight)
            self._interest.enter_context(flight.wanted())

    async def until_something_happens(self) -> None:
        """Wait until all is answered and what is ours is stored, or a pair was given up, or somebody may be too slow."""
        futures: list[asyncio.Future[Any]] = [flight.ended for flight in self.own]
        futures += [flight.answers[self.keys.pairs[place]] for place, flight in self._flights.items()]
        until = self.patient_until
        if until <= time.monotonic():
            until = time.monotonic() + _IMPATIENT_LOOK_SECONDS
        await until_settled(futures, timeout_seconds=until - time.monotonic())

    def collect(self) -> None:
        """Take what was answered; raises the error of our own flight, or of another that concerns all."""
        for flight in self.own:
            if flight.error:
                raise flight.error
        for place, flight in self._flights.items():
            answer = flight.answers[self.keys.pairs[place]]
            if not answer.done():
                continue
            if known := answer.result():
                self.found[place] = known if flight in self.own else _second_hand(known)
            elif isinstance(flight.error, ScorerDown):
                raise flight.error
        self.rest = [place for place in self.rest if place not in self.found]
        if time.monotonic() >= self.patient_until:
            self._lose_patience()

    def _lose_patience(self) -> None:
        """Have done with who has had a pair in the queue for longer than it would take here, and has not sent it to a Scorer.

        One that waits for another server sees to its own patience.
        """
        since = time.monotonic() - late_after_seconds(self.alone_seconds(len(self.rest)))
        for flight in {self._flights[place] for place in self.rest if place in self._flights} - set(self.own):
            if flight.begun < since:
                self._too_slow |= dict.fromkeys(flight.queued.intersection(flight.unanswered) - flight.under_way, flight)


def late_after_seconds(alone_seconds: float) -> float:
    """Say how old a computation must be for one who has lost patience to take it over.

    At least half a lease: of several who lose it together, one takes over and the others wait for that one.
    """
    return max(LEASE_SECONDS / 2, alone_seconds)


def _second_hand(answer: Answer) -> Answer:
    return Answer(answer.known, Origin.SHARED_IN_PROCESS) if answer.origin is Origin.COMPUTED else answer
