"""What the tests of the Lua scripts share: calls of them without our client in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import redis
from cache_parts import make_keys, score_of

from bento_service.cache import layout

LONG_MS = 60_000
QUERY = make_keys(layout.MOST_PAIRS)
PAIRS = QUERY.pairs
MINE, YOURS, THEIRS = (letter * layout.TOKEN_BYTES for letter in (b"m", b"y", b"t"))


def value_of(pair: bytes, number: int = 1) -> bytes:
    """Pack a pair's score."""
    return layout.pack_value(pair, score_of(number))


def wait_until(holds: Callable[[], Any], *, seconds: float = 5.0) -> float:
    """Wait until something is true; the seconds it took."""
    begun = time.monotonic()
    while not holds():
        assert time.monotonic() < begun + seconds, "what was waited for never came"
        time.sleep(0.003)
    return time.monotonic() - begun


class Scripts:
    """The scripts run on one query's keys."""

    def __init__(self, client: redis.Redis) -> None:
        self.client: Any = client
        self.keys = layout.query_keys(QUERY.fingerprint, QUERY.query)
        self.claims, *self.pages = self.keys

    def claim(
        self, token: bytes, pairs: Sequence[bytes], *, lease_ms: int = LONG_MS, most_age_ms: int = LONG_MS
    ) -> tuple[str, list[bytes], bytes]:
        """Claim pairs: a letter each, the values of the known ones, and a refusal."""
        arguments = (token, lease_ms, most_age_ms, b"".join(pairs))
        states, values, refusal = self.client.eval(layout.CLAIM, len(self.keys), *self.keys, *arguments)
        size = layout.VALUE_BYTES
        return states.decode(), [values[first : first + size] for first in range(0, len(values), size)], refusal

    def states(self, token: bytes, pairs: Sequence[bytes], **options: int) -> str:
        """Claim pairs, of which none is refused: the letters alone."""
        states, _, refusal = self.claim(token, pairs, **options)
        assert refusal == b""
        return states

    def settle(
        self,
        stored: Mapping[bytes, bytes] | Sequence[bytes] = (),
        released: Sequence[bytes] = (),
        token: bytes = MINE,
        *,
        ttl_ms: int = LONG_MS,
        room: int = layout.PAGE_PAIRS,
        overwrite: bool = False,
    ) -> bytes:
        """Store pairs with their values, or with some, and release claims: a refusal."""
        if not isinstance(stored, Mapping):
            stored = {pair: value_of(pair) for pair in stored}
        blobs = (b"".join(part) for part in (stored, stored.values(), released))
        refusal: bytes = self.client.eval(layout.SETTLE, len(self.keys), *self.keys, token, ttl_ms, room, int(overwrite), *blobs)
        return refusal

    def renew(self, token: bytes, pairs: Sequence[bytes], lease_ms: int = LONG_MS, *, under_way: str = "") -> int:
        """Lengthen leases: how many are still the token's. under_way: 0 or 1 for each pair."""
        flags = under_way or "0" * len(pairs)
        still: bytes = self.client.eval(layout.RENEW, len(self.keys), *self.keys, token, lease_ms, b"".join(pairs), flags)
        assert len(still) == len(pairs)
        return still.count(b"1")

    def write_claim(
        self, pair: bytes, token: bytes, *, begun_ago_ms: int, ends_in_ms: int, sent_ago_ms: int | None = None
    ) -> None:
        """Write a claim as it would look after some time; it lives for long."""
        seconds, micros = self.client.time()
        now = 1000 * seconds + micros // 1000
        sent = 0 if sent_ago_ms is None else now - sent_ago_ms
        self.client.hset(self.claims, pair, token + b"%d:%d:%d" % (now - begun_ago_ms, now + ends_in_ms, sent))
        self.client.pexpire(self.claims, LONG_MS)

    def sizes(self) -> list[int]:
        """Count the pairs on each page."""
        return [self.client.hlen(page) for page in self.pages]

    def claimed(self) -> dict[bytes, bytes]:
        """Find the tokens of all claims."""
        return {pair: claim[: layout.TOKEN_BYTES] for pair, claim in self.client.hgetall(self.claims).items()}
