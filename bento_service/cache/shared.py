"""The tier in Redis: known scores, and who computes what is not known yet, for all servers together.

Nothing here raises: a Redis that is away, full, read-only or talks rubbish costs a look-up, never a request.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import re
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from bento_service.cache import layout
from bento_service.cache.breaker import Breaker, State
from bento_service.cache.connection import Connection
from bento_service.cache.keys import DIGEST_BYTES, PairKeys
from bento_service.errors import RedisFailed
from bento_service.metrics import EntryMetrics
from bento_service.pairs import KnownScore

logger = logging.getLogger("bentoml.reranker")
T = TypeVar("T")

# A dead owner's pairs are computed by somebody else after this long at most; a living one renews its claims four times as often.
LEASE_SECONDS = 2.0
RENEWALS_PER_LEASE = 4
_FAILURES_TO_OPEN = 3
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 5.0
# A cluster of which one server fails changes its state with every few calls.
_CLUSTER_LOG_SECONDS = 60.0
STATES = (*map(str, State), "read_only")
# The first word in capitals of what Redis answers: READONLY, OOM, MISCONF, NOREPLICAS.
_REFUSAL = re.compile(r"\b[A-Z]{3,}\b")
_AWAY = ("timeout", "connection", "loading")
_REFUSALS = {
    "READONLY": "read_only",
    "OOM": "out_of_memory",
    "MISCONF": "cannot_save",
    "NOREPLICAS": "no_replicas",
    "NOPERM": "authentication",
}


@dataclass(slots=True)
class Claim:
    """What Redis says of the pairs of a request, by place.

    known: scored before · owned: for the asker to compute · foreign: somebody else computes them at this moment.
    """

    known: dict[int, KnownScore] = field(default_factory=dict)
    owned: list[int] = field(default_factory=list)
    foreign: list[int] = field(default_factory=list)


class SharedCache:
    """Looks up, claims and stores the pairs of one query in one script call each.

    connection: None without a Redis; then every pair is the asker's to compute.
    """

    def __init__(self, connection: Connection | None, *, ttl_seconds: float, metrics: EntryMetrics) -> None:
        self._connection = connection
        self._ttl_ms = max(1, round(1000 * ttl_seconds))
        self._metrics = metrics
        self._breaker = Breaker(
            failures=_FAILURES_TO_OPEN,
            first_pause_seconds=_FIRST_PAUSE_SECONDS,
            longest_pause_seconds=_LONGEST_PAUSE_SECONDS,
            on_change=self._changed,
        )
        self._last_failure = ""
        self._refusal = ""
        self._was_up: bool | None = None
        self._told: dict[str, float] = {}
        self._untold: tuple[int, str, tuple[str, ...]] | None = None
        self._cleared: dict[str, bytes | None] = {}
        self._rubbish: set[bytes] = set()  # found where a value should be, to be written over
        self._token_start = secrets.token_bytes(layout.TOKEN_BYTES - 4)
        self._token_numbers = itertools.count()

    @property
    def enabled(self) -> bool:
        """Whether there is to be a Redis."""
        return self._connection is not None

    @property
    def state(self) -> str:
        """disabled, closed (in use), open (not answering), half_open (being probed) or read_only."""
        if self._connection is None:
            return "disabled"
        return "read_only" if self._breaker.closed and self._refusal else str(self._breaker.state)

    def new_token(self) -> bytes:
        """Make an owner's token, unlike any other of any process."""
        return self._token_start + (next(self._token_numbers) % 2**32).to_bytes(4, "little")

    async def probe(self) -> None:
        """Ask whether Redis is back, or takes writes again, when it is time to; bounded in time."""
        if self._connection is None:
            return
        if self._untold:
            level, text, given = self._untold
            self._tell(level, text, *given)
        if self._breaker.closed:
            if self._refusal:
                await self._probe_writes()
            return
        if not self._breaker.probe_due():
            return
        # A claim of nothing needs all that a real one does; of another query each time, since in a cluster one server may be gone.
        arguments = (self.new_token(), round(1000 * LEASE_SECONDS), 0, b"")
        names = layout.query_keys("probe", secrets.token_bytes(DIGEST_BYTES))
        try:
            await self._connection.run_script(layout.CLAIM, names, arguments)
        except RedisFailed as error:
            self._failed(error)
        else:
            self._breaker.worked()

    async def _probe_writes(self) -> None:
        """Claim a pair that does not exist, and give it up; after a fail-over another server may be the one that takes writes."""
        if self._connection:
            with contextlib.suppress(RedisFailed):
                await self._connection.reconnect()
        pair = secrets.token_bytes(DIGEST_BYTES)
        token, names = self.new_token(), layout.query_keys("probe", pair)
        arguments = (token, round(1000 * LEASE_SECONDS), 0, pair)
        refusal = await self._run("claim", layout.CLAIM, names, arguments, lambda answer: _read_refusal(answer[2]))
        if refusal == "":
            release = (token, self._ttl_ms, layout.PAGE_PAIRS, 0, b"", b"", pair)
            refusal = await self._run("settle", layout.SETTLE, names, release, _read_refusal)
        if refusal is not None:
            self._refused(refusal, asked_to_write=True)

    async def close(self) -> None:
        """Close the connections; safe to call twice."""
        if self._connection:
            await self._connection.close()

    async def claim(self, keys: PairKeys, places: Sequence[int], token: bytes, *, most_age_seconds: float) -> Claim:
        """Look pairs up, and claim those that are neither known nor being computed.

        most_age_seconds: a claim older than that is taken over even from a living owner, unless the pair has just gone to its Scorer.
        """
        asked, beyond = places[: layout.MOST_PAIRS], places[layout.MOST_PAIRS :]
        digests = [keys.pairs[place] for place in asked]
        arguments = (token, round(1000 * LEASE_SECONDS), round(1000 * most_age_seconds), b"".join(digests))
        names = layout.query_keys(keys.fingerprint, keys.query)
        script = layout.script_for(layout.CLAIM, windows=keys.windows)
        answer = await self._run("claim", script, names, arguments, partial(self._read_claim, asked, digests))
        if answer is None:
            return Claim(owned=list(places))
        claim, asked_to_write, refusal = answer
        self._refused(refusal, asked_to_write=asked_to_write)
        claim.owned += beyond
        return claim

    def _read_claim(self, asked: Sequence[int], digests: Sequence[bytes], answer: Any) -> tuple[Claim, bool, str]:
        states, values, refusal = answer
        claim = Claim(owned=[place for place, state in zip(asked, states, strict=True) if state not in b"hw"])
        claim.foreign = [place for place, state in zip(asked, states, strict=True) if state == ord("w")]
        hits = [(place, digest) for place, digest, state in zip(asked, digests, states, strict=True) if state == ord("h")]
        found = layout.unpack_values([digest for _, digest in hits], values)
        for (place, digest), known in zip(hits, found, strict=True):
            if known:
                claim.known[place] = known
            else:
                claim.owned.append(place)
                if len(self._rubbish) < layout.MOST_PAIRS:
                    self._rubbish.add(digest)
        return claim, b"o" in states, _read_refusal(refusal)

    async def settle(
        self,
        keys: PairKeys,
        known: Mapping[bytes, KnownScore],
        released: Sequence[bytes],
        token: bytes,
        *,
        overwrite: bool = False,
    ) -> None:
        """Store scores and give claims up, by pair digest; claims that are no longer the token's stay.

        What is there already stays, unless `overwrite`.
        """
        if self._refusal:  # until a claim is taken again; those from before end with their leases
            return
        stored = list(known)[: layout.MOST_PAIRS]
        overwrite = overwrite or not self._rubbish.isdisjoint(stored)
        self._rubbish.difference_update(stored)
        arguments = (
            token,
            self._ttl_ms,
            layout.PAGE_PAIRS,
            int(overwrite),
            b"".join(stored),
            b"".join(layout.pack_value(digest, known[digest]) for digest in stored),
            b"".join(released[: layout.MOST_PAIRS]),
        )
        names = layout.query_keys(keys.fingerprint, keys.query)
        script = layout.script_for(layout.SETTLE, windows=keys.windows)
        refusal = await self._run("settle", script, names, arguments, _read_refusal)
        if refusal is not None:
            self._refused(refusal, asked_to_write=bool(stored))

    async def renew(self, keys: PairKeys, digests: Sequence[bytes], under_way: Collection[bytes], token: bytes) -> set[bytes]:
        """Lengthen the leases of the token's claims; the pairs that are somebody else's by now, or known.

        under_way: those that are with a Scorer: they are worth waiting for a little longer.
        """
        digests = digests[: layout.MOST_PAIRS]
        flags = "".join("01"[digest in under_way] for digest in digests).encode()
        arguments = (token, round(1000 * LEASE_SECONDS), b"".join(digests), flags)
        names = layout.query_keys(keys.fingerprint, keys.query)
        script = layout.script_for(layout.RENEW, windows=keys.windows)
        still = await self._run("renew", script, names, arguments, bytes)
        return {digest for digest, flag in zip(digests, still or b"", strict=False) if flag == ord("0")}

    async def statistics(self) -> dict[str, Any]:
        """Report for /health at constant cost; cached_entries counts the keys of the whole Redis, look-ups are its own totals too."""
        report = {
            "enabled": self.enabled,
            "connected": self._connection is not None and self._breaker.closed,
            "state": self.state,
        }
        counts = {"cached_entries": 0, "keyspace_hits": 0, "keyspace_misses": 0}
        if self._connection and self._breaker.closed:
            try:
                counts = await self._connection.statistics()
            except RedisFailed as error:  # perhaps only of these commands, so it says nothing about the others
                self._metrics.redis_errors.labels(str(error)).inc()
        return report | counts

    async def was_cleared(self, fingerprint: str) -> bool:
        """Tell whether `make cache-clear` ran for this model since the last time this was asked."""
        if self._connection is None or not self._breaker.closed:
            return False
        try:
            mark = await self._connection.get(layout.cleared_key(fingerprint))
        except RedisFailed as error:
            if str(error) in _AWAY and not self._connection.is_cluster:
                self._failed(error)  # an idle worker notices, too
            else:  # perhaps only of this command, or of one server of many
                self._metrics.redis_errors.labels(str(error)).inc()
            return False
        self._breaker.worked()
        seen, self._cleared = self._cleared, {**self._cleared, fingerprint: mark}
        # The first time it may be an old mark, or one that was made while Redis could not be asked.
        return mark is not None and mark != seen.get(fingerprint)

    async def _run(
        self, operation: str, script: str, keys: Sequence[str], arguments: Sequence[bytes | int], read: Callable[[Any], T]
    ) -> T | None:
        """Run a script if Redis answers at the moment, and read its answer; None if that cannot be had."""
        if self._connection is None or not self._breaker.closed:
            return None
        start = time.perf_counter()
        try:
            answer = read(await self._connection.run_script(script, keys, arguments, is_wanted=lambda: self._breaker.closed))
        except RedisFailed as error:
            if str(error) != "busy":
                self._failed(error)
            elif self._breaker.closed:  # with calls of our own, which says nothing of Redis
                self._metrics.redis_errors.labels(str(error)).inc()
            return None
        except (TypeError, ValueError, AttributeError):  # something that is no Redis
            self._failed(RedisFailed("unexpected"))
            return None
        self._metrics.redis_seconds.labels(operation).observe(time.perf_counter() - start)
        self._breaker.worked()
        return answer

    def _failed(self, error: RedisFailed) -> None:
        self._last_failure = str(error)
        self._metrics.redis_errors.labels(str(error)).inc()
        self._breaker.failed()

    def _refused(self, refusal: str, *, asked_to_write: bool) -> None:
        """Note whether Redis takes writes: a replica, a full one and one that cannot save still answer look-ups."""
        found = _REFUSAL.search(refusal)
        kind = found.group() if found else "REFUSED" if refusal else ""
        if kind:
            self._metrics.redis_errors.labels(_REFUSALS.get(kind, "refused")).inc()
        if not asked_to_write or bool(kind) == bool(self._refusal):
            return
        self._refusal = kind
        self._show()
        if not kind:
            self._tell(logging.INFO, "Redis takes writes again")
            return
        self._tell(
            logging.WARNING, "Redis refuses writes (%s): what it knows is still used, new scores stay in this process", kind
        )

    def _changed(self, state: State) -> None:
        self._show()
        if state is State.CLOSED and self._was_up is not True:
            self._was_up = True
            self._tell(logging.INFO, "Redis answers: scores are shared with other servers")
        elif state is State.OPEN and self._was_up is not False:
            self._was_up = False
            self._tell(
                logging.WARNING, "Redis does not answer (%s): scores stay in this process until it does", self._last_failure
            )

    def _tell(self, level: int, text: str, *given: str) -> None:
        """Log a change of state; of a cluster, the same change once a minute, and the last one in any case."""
        now, self._untold = time.monotonic(), None
        if self._connection and self._connection.is_cluster and now - self._told.get(text, -math.inf) < _CLUSTER_LOG_SECONDS:
            self._untold = level, text, given
            return
        self._told[text] = now
        logger.log(level, text, *given)

    def _show(self) -> None:
        shown = self.state
        for state in STATES:
            self._metrics.redis_state.labels(state).set(state == shown)


def _read_refusal(answer: bytes) -> str:
    return answer.decode(errors="replace")
