"""What the tests of the caches share: pairs with keys and scores, and our end of a Redis."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np

from bento_service.cache.connection import Connection
from bento_service.cache.keys import PairKeys, pair_keys
from bento_service.cache.shared import STATES, Claim, SharedCache
from bento_service.metrics import EntryMetrics
from bento_service.pairs import KnownScore
from bento_service.redis_url import parse_redis_url
from bento_service.schemas import RerankQuery
from redis_servers import RedisServer

FINGERPRINT = "0123456789abcdef" * 4
OTHER_FINGERPRINT = "fedcba9876543210" * 4
# A script that stores bytes, and answers with bytes and numbers.
STORE = "redis.call('SET', KEYS[1], ARGV[1]) return {redis.call('GET', KEYS[1]), #ARGV, tonumber(ARGV[2])}"
BYTES = bytes(range(256))


class Clock:
    """A clock that goes when it is told to; stands in for the module `time`."""

    now = 1000.0

    def monotonic(self) -> float:
        """Tell the time."""
        return self.now


def draws(seed: int) -> random.Random:
    """Draw the same in every run."""
    return random.Random(seed)  # noqa: S311  no secrets are drawn


def make_keys(count: int, query: str = "query", fingerprint: str = FINGERPRINT) -> PairKeys:
    """Name the pairs of a query with so many documents."""
    documents = [f"document {number}" for number in range(count)]
    return pair_keys(RerankQuery(query, []), documents, fingerprint=fingerprint, max_length=512)


def score_of(number: int) -> KnownScore:
    """Make a score unlike any other number's; a float32, as models give them."""
    return KnownScore(float(np.float32(number) / np.float32(7)), number + 3, number % 5 == 0)


def scores_of(keys: PairKeys) -> dict[bytes, KnownScore]:
    """Score all pairs of a query."""
    return {pair: score_of(number) for number, pair in enumerate(keys.pairs)}


@contextlib.asynccontextmanager
async def connected(url: str, *, timeout_seconds: float = 2.0) -> AsyncIterator[Connection]:
    """Offer a connection, which is closed in the end."""
    connection = Connection(parse_redis_url(url), timeout_seconds=timeout_seconds)
    try:
        yield connection
    finally:
        await connection.close()


async def assert_works(connection: Connection, key: str = "key") -> None:
    """Bytes and numbers arrive as they are, by a script and by GET."""
    assert await connection.run_script(STORE, [key], [BYTES, 7]) == [BYTES, 2, 7]
    assert await connection.get(key) == BYTES
    assert await connection.get(f"no {key}") is None


@contextlib.asynccontextmanager
async def sharing(
    url: str, metrics: EntryMetrics, *, ttl_seconds: float = 600.0, timeout_seconds: float = 2.0
) -> AsyncIterator[SharedCache]:
    """Offer one server's view of a Redis, after its first probe."""
    async with connected(url, timeout_seconds=timeout_seconds) as connection:
        shared = SharedCache(connection, ttl_seconds=ttl_seconds, metrics=metrics)
        await shared.probe()
        yield shared


@contextlib.asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[str]:
    """Run a server that greets as Redis does and answers every script so, or hangs up; its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError), contextlib.closing(writer):
            while data := await reader.read(65536):
                if b"EVALSHA" not in data:
                    writer.write(b"%0\r\n" if b"HELLO" in data else b"")
                    writer.write(b"+OK\r\n" * (data.count(b"*") - data.count(b"HELLO")))
                elif answer:
                    writer.write(answer)
                else:
                    return

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    finally:
        server.close()


async def until(holds: Callable[[], Any], *, seconds: float = 5.0) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "what was waited for never came"
        await asyncio.sleep(0.005)


def value_of(metric: Any) -> float:
    """Read a counter or gauge of this process."""
    return float(metric._value.get())


def calls_of(server: RedisServer) -> dict[str, int]:
    """Count the commands a server has run since it was lent, those of scripts included; CONFIG and INFO are the tests' own."""
    stats = server._control.info("commandstats")
    return {name.removeprefix("cmdstat_"): int(stat["calls"]) for name, stat in stats.items()}


def states_of(metrics: EntryMetrics) -> dict[str, float]:
    """Read the states of Redis that the metric shows, but for those at 0."""
    shown = {state: value_of(metrics.redis_state.labels(state)) for state in STATES}
    return {state: value for state, value in shown.items() if value}


async def look_up(shared: SharedCache, keys: PairKeys, token: bytes = b"looks it up!") -> Claim:
    """Ask for all pairs of a query."""
    return await shared.claim(keys, range(len(keys.pairs)), token, most_age_seconds=60.0)
