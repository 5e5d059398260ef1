"""No pair is computed twice: each has one owner in this process and, with a Redis, one among all servers.

known here ▶ being computed here: wait ▶ one call to Redis: known, ours, or somebody else's
▶ compute what is ours ▶ store it ▶ only then wait for somebody else's
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from bento_service.admission import scoring_failed
from bento_service.cache.keys import PairKeys
from bento_service.cache.layout import MOST_PAIRS
from bento_service.cache.local import LocalCache
from bento_service.cache.shared import LEASE_SECONDS, RENEWALS_PER_LEASE, SharedCache
from bento_service.flight import Answer, Flight, Origin, until_settled
from bento_service.metrics import EntryMetrics
from bento_service.pairs import KnownScore, Outcome, PairScore
from bento_service.schemas import CacheUse
from bento_service.waiting import Waiting, late_after_seconds
from bento_service.windows import Window

T = TypeVar("T")
_LONGEST_WAIT_SECONDS = 3600.0  # every request has a deadline before that
_FIRST_POLL_SECONDS, _LONGEST_POLL_SECONDS, _POLL_GROWTH = 0.01, 0.1, 1.5


class Progress(Protocol):
    """What a computation asks and tells on its way."""

    def wants(self, place: int, /) -> bool:
        """Tell, when a pair's turn comes, whether it is still to be computed here."""

    def sent(self, places: Sequence[int], windows: Sequence[Window], call: asyncio.Task[list[PairScore]], /) -> None:
        """Take note of a call to a Scorer: which windows of which pairs, and where their scores will be."""


class Compute(Protocol):
    """Computes pairs: tokenises, queues and scores."""

    async def __call__(self, places: Sequence[int], progress: Progress, /) -> None:
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
        """Give up what is under way, claims included; bounded in time, safe to call twice."""
        for flight in set(self._flights.values()):
            flight.drop()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=LEASE_SECONDS)
            for task in late:
                task.cancel()

    async def answers(
        self,
        keys: PairKeys,
        compute: Compute,
        *,
        use: CacheUse,
        alone_seconds: Callable[[int], float],
        check_room: Callable[[Sequence[int]], None] = lambda _: None,
        looked_up: Callable[[], None] = lambda: None,
    ) -> list[Answer]:
        """Answer each pair, in order; no pair may come twice.

        alone_seconds: how long so many pairs would take by now if nothing was shared. What others own is waited for during a lease
        longer than that; then whatever is not with a Scorer is taken over from who has had it for that long. check_room: raises what `compute`
        would at its begin, for the pairs at these places; asked before anything begins where no cache beside this process's is asked,
        since a server under overload refuses most of what comes · looked_up: called once the caches have said what they know. Cancelling drops what nobody else
        wants and has not gone out. Raises what `compute` raises.
        """
        places = range(len(keys.pairs))
        if use is not CacheUse.FULL:
            check_room(places)
            found = await self._anew(keys, compute, store=use is CacheUse.REFRESH)
        else:
            found = {place: Answer(known, Origin.PROCESS) for place in places if (known := self._local.get(keys.pairs[place]))}
            rest = [place for place in places if place not in found]
            if rest:
                found |= await self._together(Waiting(keys, rest, alone_seconds, looked_up), compute, check_room)
            else:
                looked_up()
        answers = [found[place] for place in places]
        self._count(answers)
        return answers

    async def _anew(self, keys: PairKeys, compute: Compute, *, store: bool) -> dict[int, Answer]:
        """Compute everything, whatever is known, and share it with nobody before it is stored."""
        flight = Flight(keys, range(len(keys.pairs)), self._shared.new_token())
        self._launch(flight, self._compute_alone(flight, compute, store=store))
        with flight.wanted():
            await until_settled([flight.ended], timeout_seconds=_LONGEST_WAIT_SECONDS)
        if flight.error:
            raise flight.error
        return {place: answer for place in flight.places if (answer := flight.answers[keys.pairs[place]].result())}

    async def _compute_alone(self, flight: Flight, compute: Compute, *, store: bool) -> None:
        try:
            await compute(flight.places, _Progress(self, flight, alone=True, store=store))
        except Exception as error:  # noqa: BLE001  whatever it was, it is the one's who asked
            flight.end(error)
        finally:
            while flight.calls:
                await asyncio.wait(flight.calls)
            await self._store(flight, (), overwrite=True)

    async def _together(
        self, waiting: Waiting, compute: Compute, check_room: Callable[[Sequence[int]], None]
    ) -> dict[int, Answer]:
        """Compute what nobody computes and wait for the rest; begin anew with what others gave up or are too slow with."""
        with waiting:
            while waiting.rest:
                if led := waiting.unowned(self._flights):
                    if not self._shared.enabled:
                        waiting.caches_have_answered()
                        check_room(led)
                    waiting.own.append(self._begin(waiting, led, compute))
                else:
                    waiting.caches_have_answered()
                waiting.join(self._flights)
                await waiting.until_something_happens()
                waiting.collect()
            return waiting.found

    def _begin(self, waiting: Waiting, places: list[int], compute: Compute) -> Flight:
        flight = Flight(waiting.keys, places, self._shared.new_token())
        before = {key: self._flights[key] for key in flight.answers if key in self._flights}
        self._flights |= dict.fromkeys(flight.answers, flight)
        self._launch(flight, self._fly(flight, compute, waiting, before))
        return flight

    def _launch(self, flight: Flight, work: Coroutine[Any, Any, None]) -> None:
        flight.task = task = asyncio.create_task(work)
        self._tasks.add(task)

        def landed(_: asyncio.Task[None]) -> None:
            # Here and not in the task, which when it is cancelled early never runs.
            self._tasks.discard(task)
            self._leave(flight, flight.answers)
            flight.end()

        task.add_done_callback(landed)

    async def _fly(self, flight: Flight, compute: Compute, waiting: Waiting, before: Mapping[bytes, Flight]) -> None:
        """Get every answer of a flight; on every way out its claims are released."""
        renewing = asyncio.create_task(self._renew(flight)) if self._shared.enabled else None
        try:
            await self._take_claims(before)
            await self._claim_compute_store(flight, compute, waiting)
        except Exception as error:  # noqa: BLE001  whatever it was, it is the one's who began
            flight.end(error)
            await self._give_up(flight)
        except asyncio.CancelledError:
            await self._give_up(flight)
            raise
        finally:
            if renewing:
                renewing.cancel()

    async def _take_claims(self, before: Mapping[bytes, Flight]) -> None:
        """Release the claims of the slow flights of this process whose pairs are taken over; they know by the table."""
        for slow in set(before.values()):
            taken = slow.claimed & {key for key, owner in before.items() if owner is slow}
            slow.claimed -= taken
            if taken:
                await _to_its_end(self._settle(slow, {}, taken, overwrite=False))

    async def _claim_compute_store(self, flight: Flight, compute: Compute, request: Waiting) -> None:
        keys, waiting, origin, pause = flight.keys, flight.places, Origin.REDIS, _FIRST_POLL_SECONDS
        while waiting:
            patient = time.monotonic() < request.patient_until
            most_age = _LONGEST_WAIT_SECONDS if patient else late_after_seconds(request.alone_seconds(len(waiting)))
            if self._shared.enabled:
                flight.claimed = {
                    keys.pairs[place] for place in waiting[:MOST_PAIRS]
                }  # until the answer is there, any may be ours
            claim = await _to_its_end(self._shared.claim(keys, waiting, flight.token, most_age_seconds=most_age))
            flight.claimed &= {keys.pairs[place] for place in claim.owned}
            request.caches_have_answered()
            for place, known in claim.known.items():
                self._local.put(keys.pairs[place], known)
                flight.answer(keys.pairs[place], Answer(known, origin))
            if claim.owned:
                flight.queued = {keys.pairs[place] for place in claim.owned}
                await compute(claim.owned, _Progress(self, flight))
                await self._store(flight, flight.claimed)
            # What is neither answered nor ours any more in this process is with the flight that took it over.
            waiting = [place for place in waiting if self._is_open(flight, keys.pairs[place])]
            flight.lost.clear()
            origin = Origin.SHARED_AMONG_SERVERS
            if waiting and not claim.owned:
                await asyncio.sleep(pause)
                pause = min(_LONGEST_POLL_SECONDS, pause * _POLL_GROWTH)

    def _is_open(self, flight: Flight, key: bytes) -> bool:
        return not flight.answers[key].done() and self._flights.get(key) is flight

    def wants(self, flight: Flight, place: int) -> bool:
        """Tell whether a pair of a flight is still its own to compute."""
        key = flight.keys.pairs[place]
        return self._is_open(flight, key) and key not in flight.lost

    def keep(self, flight: Flight, place: int, known: KnownScore, fingerprint: str, *, overwrite: bool) -> None:
        """Remember a score under the model that gave it: a Scorer may have come back as another one."""
        keys = flight.keys if fingerprint == flight.keys.fingerprint else flight.keys_of(fingerprint)
        flight.unstored.setdefault(fingerprint, {})[keys.pairs[place]] = known
        self._local.put(keys.pairs[place], known, overwrite=overwrite)

    async def _store(self, flight: Flight, released: Iterable[bytes], *, overwrite: bool = False) -> None:
        """Store what was computed and release the claims to it, in one call."""
        unstored, flight.unstored = flight.unstored, {}
        released = set(released)
        flight.claimed = flight.claimed - released
        if unstored or released:
            await _to_its_end(self._settle(flight, unstored, released, overwrite=overwrite))

    async def _settle(
        self, flight: Flight, unstored: dict[str, dict[bytes, KnownScore]], released: Collection[bytes], *, overwrite: bool
    ) -> None:
        async with flight.redis_turn:
            known = unstored.pop(flight.keys.fingerprint, {})
            if known or released:
                await self._shared.settle(flight.keys, known, list(released), flight.token, overwrite=overwrite)
            for fingerprint, others in unstored.items():
                await self._shared.settle(flight.keys_of(fingerprint), others, (), flight.token, overwrite=overwrite)

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
        """Keep the claims of a slow computation; a process that dies stops doing so. What another server took over is left to it."""
        while True:
            await asyncio.sleep(LEASE_SECONDS / RENEWALS_PER_LEASE)
            async with flight.redis_turn:
                if not flight.claimed:
                    continue
                under_way = flight.under_way
                lost = await self._shared.renew(flight.keys, list(flight.claimed), under_way, flight.token)
                flight.claimed -= lost
                flight.lost |= lost - under_way

    def _count(self, answers: Sequence[Answer]) -> None:
        for origin, count in Counter(answer.origin for answer in answers).items():
            if origin in (Origin.PROCESS, Origin.REDIS):
                self._metrics.cache_hits.labels(origin.value).inc(count)
            elif origin is Origin.COMPUTED:
                self._metrics.cache_misses.inc(count)
            else:
                self._metrics.shared_pairs.labels("process" if origin is Origin.SHARED_IN_PROCESS else "servers").inc(count)


class _Progress:
    """Follows a flight's calls to their end, whoever still waits for them by then: what a Scorer has computed is not thrown away."""

    def __init__(self, dedup: Deduplication, flight: Flight, *, alone: bool = False, store: bool = True) -> None:
        self._dedup = dedup
        self._flight = flight
        self._alone = alone
        self._store = store

    def wants(self, place: int) -> bool:
        """See Progress."""
        return self._alone or self._dedup.wants(self._flight, place)

    def sent(self, places: Sequence[int], windows: Sequence[Window], call: asyncio.Task[list[PairScore]]) -> None:
        """See Progress."""
        flight = self._flight
        flight.calls[call] = list(places)

        def ended(_: asyncio.Task[list[PairScore]]) -> None:
            places = flight.calls.pop(call)
            if call.cancelled() or call.exception():
                return
            for place, window, score in zip(places, windows, call.result(), strict=True):
                if score.outcome is Outcome.LATE or not (pair := window.add(score)):
                    continue
                if pair.failed:
                    flight.fail(flight.keys.pairs[place], scoring_failed())
                    continue
                flight.answer(flight.keys.pairs[place], Answer(pair.known, Origin.COMPUTED))
                if self._store and pair.fingerprint:
                    self._dedup.keep(flight, place, pair.known, pair.fingerprint, overwrite=self._alone)

        call.add_done_callback(ended)


async def _to_its_end(call: Coroutine[Any, Any, T]) -> T:
    """Await a call to Redis, which is short, also when cancelled meanwhile: what it did there must be known to be undone."""
    task = asyncio.ensure_future(call)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
