"""No pair is computed twice: each has one owner in this process and, with a Redis, one among all servers.

known here ▶ being computed here: wait ▶ one call to Redis: known, ours, or somebody else's
▶ compute what is ours ▶ store it ▶ only then wait for somebody else's
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol, Self

from bento_service.admission import scoring_failed
from bento_service.cache.keys import PairKeys
from bento_service.cache.local import LocalCache
from bento_service.cache.shared import LEASE_SECONDS, RENEWALS_PER_LEASE, SharedCache
from bento_service.errors import ScorerDown
from bento_service.flight import Answer, Flight, Origin, is_bad, until_settled
from bento_service.metrics import EntryMetrics
from bento_service.pairs import KnownScore, Outcome, PairScore
from bento_service.schemas import CacheUse
from bento_service.tokenizer import TokenizedPair

_LONGEST_WAIT_SECONDS = 3600.0  # every request has a deadline before that
_FIRST_POLL_SECONDS, _LONGEST_POLL_SECONDS, _POLL_GROWTH = 0.01, 0.1, 1.5


class Sent(Protocol):
    """Told of each call to a Scorer as it goes out."""

    def __call__(self, places: Sequence[int], pairs: Sequence[TokenizedPair], call: asyncio.Task[list[PairScore]], /) -> None:
        """Take note of a call: which pairs, and where their scores will be."""


class Compute(Protocol):
    """Computes pairs: tokenises, queues and scores."""

    async def __call__(self, places: Sequence[int], sent: Sent, /) -> None:
        """Compute the pairs at these places; return when all calls have ended, raise if one failed."""


class Deduplication:
    """Answers pairs from where each is cheapest."""

    def __init__(self, local: LocalCache, shared: SharedCache, metrics: EntryMetrics) -> None:
        self._local = local
        self._shared = shared
        self._metrics = metrics
        self._flights: dict[bytes, Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def stop(self) -> None:
        """Give up what is under way; safe to call twice."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def answers(
        self, keys: PairKeys, compute: Compute, *, use: CacheUse, alone_seconds: Callable[[int], float]
    ) -> list[Answer]:
        """Answer each pair, in order; no pair may come twice.

        alone_seconds: how long so many pairs would take if nothing was shared: nobody waits for others for longer than that and
        a lease. Cancelling drops what nobody else wants and has not gone out. Raises what `compute` raises.
        """
        places = range(len(keys.pairs))
        if use is not CacheUse.FULL:
            found = await self._anew(keys, compute, store=use is CacheUse.REFRESH)
        else:
            found = {place: Answer(known, Origin.PROCESS) for place in places if (known := self._local.get(keys.pairs[place]))}
            rest = [place for place in places if place not in found]
            if rest:
                found |= await self._together(keys, rest, compute, LEASE_SECONDS + alone_seconds(len(rest)))
        answers = [found[place] for place in places]
        self._count(answers)
        return answers

    async def _anew(self, keys: PairKeys, compute: Compute, *, store: bool) -> dict[int, Answer]:
        """Compute everything, whatever is known."""
        flight = Flight(keys, range(len(keys.pairs)), self._shared.new_token())
        try:
            await compute(flight.places, lambda *call: self._sent(flight, *call, store=store, overwrite=True))
        finally:
            await self._store(flight, (), overwrite=True)
        return {place: answer for place in flight.places if (answer := flight.answers[keys.pairs[place]].result())}

    async def _together(self, keys: PairKeys, rest: list[int], compute: Compute, patience_seconds: float) -> dict[int, Answer]:
        """Compute what nobody computes and wait for the rest; begin anew with what others gave up or are too slow with."""
        with _Waiting(keys, rest, patience_seconds) as waiting:
            while waiting.rest:
                if led := waiting.unowned(self._flights):
                    waiting.own.append(self._begin(keys, led, compute, patience_seconds))
                waiting.join(self._flights)
                await waiting.until_something_happens()
                waiting.collect()
            return waiting.found

    def _begin(self, keys: PairKeys, places: list[int], compute: Compute, patience_seconds: float) -> Flight:
        flight = Flight(keys, places, self._shared.new_token())
        self._flights |= dict.fromkeys(flight.answers, flight)
        flight.task = task = asyncio.create_task(self._fly(flight, compute, patience_seconds))
        self._tasks.add(task)

        def landed(_: asyncio.Task[None]) -> None:
            # Here and not in the task, which when it is cancelled early never runs.
            self._tasks.discard(task)
            self._leave(flight, flight.answers)
            flight.end()

        task.add_done_callback(landed)
        return flight

    async def _fly(self, flight: Flight, compute: Compute, patience_seconds: float) -> None:
        """Get every answer of a flight; on every way out its claims are released."""
        renewing = asyncio.create_task(self._renew(flight))
        try:
            await self._get(flight, compute, patience_seconds)
        except Exception as error:  # noqa: BLE001  whatever it was, it is the one's who began
            flight.end(error)
            await self._give_up(flight)
        except asyncio.CancelledError:
            await self._give_up(flight)
            raise
        finally:
            renewing.cancel()

    async def _get(self, flight: Flight, compute: Compute, patience_seconds: float) -> None:
        keys, waiting, origin, pause = flight.keys, flight.places, Origin.REDIS, _FIRST_POLL_SECONDS
        while waiting:
            claim = await self._shared.claim(keys, waiting, flight.token, most_age_seconds=patience_seconds)
            for place, known in claim.known.items():
                self._local.put(keys.pairs[place], known)
                flight.answer(keys.pairs[place], Answer(known, origin))
            if claim.owned:
                if self._shared.enabled:
                    flight.claimed |= {keys.pairs[place] for place in claim.owned}
                await compute(claim.owned, lambda *call: self._sent(flight, *call))
                await self._store(flight, flight.claimed)
            waiting, origin = claim.foreign, Origin.SHARED_AMONG_SERVERS
            if waiting and not claim.owned:
                await asyncio.sleep(pause)
                pause = min(_LONGEST_POLL_SECONDS, pause * _POLL_GROWTH)

    def _sent(
        self,
        flight: Flight,
        places: Sequence[int],
        pairs: Sequence[TokenizedPair],
        call: asyncio.Task[list[PairScore]],
        *,
        store: bool = True,
        overwrite: bool = False,
    ) -> None:
        """Follow a call to its end, whoever still waits for it by then: what a Scorer has computed is not thrown away."""
        flight.calls[call] = list(places)

        def ended(_: asyncio.Task[list[PairScore]]) -> None:
            places = flight.calls.pop(call)
            if call.cancelled() or call.exception():
                return
            for place, pair, score in zip(places, pairs, call.result(), strict=True):
                if score.outcome is Outcome.FAILED:
                    flight.fail(flight.keys.pairs[place], scoring_failed())
                elif score.outcome is Outcome.SCORED:
                    known = KnownScore(score.raw, pair.token_count, pair.truncated)
                    flight.answer(flight.keys.pairs[place], Answer(known, Origin.COMPUTED))
                    if store:
                        self._keep(flight, place, known, score.fingerprint.hex(), overwrite=overwrite)

        call.add_done_callback(ended)

    def _keep(self, flight: Flight, place: int, known: KnownScore, fingerprint: str, *, overwrite: bool) -> None:
        """Remember a score under the model that gave it: a Scorer may have come back as another one."""
        keys = flight.keys if fingerprint == flight.keys.fingerprint else flight.keys.under(fingerprint)
        flight.unstored.setdefault(fingerprint, {})[keys.pairs[place]] = known
        self._local.put(keys.pairs[place], known, overwrite=overwrite)

    async def _store(self, flight: Flight, released: Iterable[bytes], *, overwrite: bool = False) -> None:
        """Store what was computed and release the claims to it, in one call."""
        unstored, flight.unstored = flight.unstored, {}
        released = set(released)
        flight.claimed = flight.claimed - released
        known = unstored.pop(flight.keys.fingerprint, {})
        if known or released:
            await self._shared.settle(flight.keys, known, list(released), flight.token, overwrite=overwrite)
        for fingerprint, others in unstored.items():
            await self._shared.settle(flight.keys.under(fingerprint), others, (), flight.token, overwrite=overwrite)

    async def _give_up(self, flight: Flight) -> None:
        """Let others begin anew with what has not gone out; see what has gone out to its end."""
        under_way = flight.under_way
        self._leave(flight, [key for key in flight.unanswered if key not in under_way])
        await self._store(flight, flight.claimed - under_way)
        while flight.calls:
            await asyncio.wait(flight.calls)
        await self._store(flight, flight.claimed)

    def _leave(self, flight: Flight, keys: Collection[bytes]) -> None:
        """Take pairs out of the table of what is being computed."""
        for key in keys:
            flight.answer(key, None)
            if self._flights.get(key) is flight:
                del self._flights[key]

    async def _renew(self, flight: Flight) -> None:
        """Keep the claims of a slow computation; a process that dies stops doing so."""
        while True:
            await asyncio.sleep(LEASE_SECONDS / RENEWALS_PER_LEASE)
            if flight.claimed:
                await self._shared.renew(flight.keys, list(flight.claimed), flight.token)

    def _count(self, answers: Sequence[Answer]) -> None:
        for origin, count in Counter(answer.origin for answer in answers).items():
            if origin in (Origin.PROCESS, Origin.REDIS):
                self._metrics.cache_hits.labels(origin.value).inc(count)
            elif origin is Origin.COMPUTED:
                self._metrics.cache_misses.inc(count)
            else:
                self._metrics.shared_pairs.labels("process" if origin is Origin.SHARED_IN_PROCESS else "servers").inc(count)


class _Waiting:
    """What one request still waits for, and whose flights it has an interest in until it leaves."""

    def __init__(self, keys: PairKeys, places: list[int], patience_seconds: float) -> None:
        self.rest = places
        self.found: dict[int, Answer] = {}
        self.own: list[Flight] = []
        self._keys = keys
        self._patience_seconds = patience_seconds
        self._flights: dict[int, Flight] = {}
        self._too_slow: dict[bytes, Flight] = {}
        self._joined: set[Flight] = set()
        self._interest = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._interest.close()

    def unowned(self, flights: Mapping[bytes, Flight]) -> list[int]:
        """Find what nobody computes, or somebody for too long or in vain."""
        return [place for place in self.rest if not self._is_owned(self._keys.pairs[place], flights)]

    def _is_owned(self, key: bytes, flights: Mapping[bytes, Flight]) -> bool:
        flight = flights.get(key)
        return flight is not None and flight is not self._too_slow.get(key) and not is_bad(flight.answers[key])

    def join(self, flights: Mapping[bytes, Flight]) -> None:
        """Have an interest in every flight that computes what is waited for."""
        self._flights = {place: flights[self._keys.pairs[place]] for place in self.rest}
        for flight in set(self._flights.values()) - self._joined:
            self._joined.add(flight)
            self._interest.enter_context(flight.wanted())

    async def until_something_happens(self) -> None:
        """Wait until all is answered and what is ours is stored, or a pair was given up, or somebody is too slow."""
        futures: list[asyncio.Future[Any]] = [flight.ended for flight in self.own]
        futures += [flight.answers[self._keys.pairs[place]] for place, flight in self._flights.items()]
        until = min((self._until(flight) for flight in self._flights.values()), default=math.inf)
        await until_settled(futures, timeout_seconds=max(0.0, until - time.monotonic()))

    def collect(self) -> None:
        """Take what was answered; raises the error of our own flight, or of another that concerns all."""
        for flight in self.own:
            if flight.error:
                raise flight.error
        for place, flight in self._flights.items():
            answer = flight.answers[self._keys.pairs[place]]
            if not answer.done():
                if time.monotonic() >= self._until(flight):
                    self._too_slow[self._keys.pairs[place]] = flight
            elif known := answer.result():
                self.found[place] = known if flight in self.own else _second_hand(known)
            elif isinstance(flight.error, ScorerDown):
                raise flight.error
        self.rest = [place for place in self.rest if place not in self.found]

    def _until(self, flight: Flight) -> float:
        """Our own flight ends by itself; another one may have a long way to go before it comes to what is wanted here."""
        return time.monotonic() + _LONGEST_WAIT_SECONDS if flight in self.own else flight.begun + self._patience_seconds


def _second_hand(answer: Answer) -> Answer:
    return Answer(answer.known, Origin.SHARED_IN_PROCESS) if answer.origin is Origin.COMPUTED else answer
