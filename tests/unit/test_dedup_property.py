"""Random requests at three servers over one Redis: every answer is right to the bit, and nothing is left over.

PROPERTY_ROUNDS: of each kind, 3 unless told otherwise · PROPERTY_SEED: of the first round.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from dedup_parts import Server, claims_in, clean, make_tokenizer, until
from dedup_weather import SECONDS, Asked, FickleLink, Judge, Weather, break_redis

from bento_service import dedup, waiting
from bento_service.cache import shared
from bento_service.errors import DeadlinePassed, DocumentTooLong, QueueFull, ScorerDown, ScorerFailed
from bento_service.metrics import EntryMetrics
from bento_service.tokenizer import PairTokenizer
from redis_servers import RedisServer

ROUNDS = int(os.environ.get("PROPERTY_ROUNDS", "3"))
FIRST_SEED = int(os.environ.get("PROPERTY_SEED", "1"))
CLIENTS, REQUESTS = 20, 10
LATEST_SECONDS = 2.0  # after the deadline, on a machine that is busy
FAULTS = (DeadlinePassed, QueueFull, ScorerDown, ScorerFailed)


@pytest.fixture(scope="module")
def tokenizer(builtin_folder: Path) -> Iterator[PairTokenizer]:
    """Load the built-in model's tokenizer once."""
    with make_tokenizer(builtin_folder) as made:
        yield made


async def behave(server: Server, asked: Asked, weather: Weather, judge: Judge) -> bool:
    """Be a client: leave, or judge what came; tell whether there was an answer."""
    begin = time.monotonic()
    task = server.ask(*asked.texts, query=asked.query, seconds=asked.seconds, use=asked.use, **asked.fields)
    if asked.leaves_after is not None:
        await asyncio.wait({task}, timeout=asked.leaves_after)
        task.cancel()
    await asyncio.wait({task}, timeout=asked.seconds + LATEST_SECONDS)
    took = time.monotonic() - begin
    assert task.done(), f"no end after {took:.1f} s: {asked}"
    if task.cancelled():
        return False
    error = task.exception()
    if error is None:
        judge.check(asked, task.result())
    elif isinstance(error, DocumentTooLong):
        assert not asked.fields["truncation"], asked
    else:
        assert weather.faults, f"{error!r} after {took:.1f} s: {asked}"
        assert isinstance(error, FAULTS), repr(error)
        assert took < SECONDS, f"starved: {asked}"
    return error is None


async def play(servers: list[Server], weather: Weather, judge: Judge) -> list[tuple[Asked, bool]]:
    """Let clients ask one thing after another; tell which were answered."""
    played = []

    async def client() -> None:
        for number in range(REQUESTS):
            await weather.a_moment(0.1 if weather.faults else 0.01)
            asked = weather.request(number)
            played.append((asked, await behave(weather.random.choice(servers), asked, weather, judge)))

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return played


@contextlib.asynccontextmanager
async def around(servers: list[Server], redis: RedisServer, weather: Weather) -> AsyncIterator[None]:
    """Probe a Redis that is away, as the housekeeping does; break it, if that is the weather."""

    async def look_after() -> None:
        while True:
            for server in servers:
                await server.shared.probe()
            await asyncio.sleep(0.02)

    tasks = [asyncio.create_task(look_after())]
    if weather.faults:
        tasks.append(asyncio.create_task(break_redis(redis, weather)))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for end in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(end, asyncio.CancelledError), repr(end)


@pytest.mark.parametrize("kind", ["calm", "leaving", "stormy"])
@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + ROUNDS))
def test_every_answer_is_the_one_without_a_cache(
    tokenizer: PairTokenizer, entry_metrics: EntryMetrics, monkeypatch: pytest.MonkeyPatch, seed: int, kind: str
) -> None:
    """Without faults each pair is scored once among all servers; with them, only an error of that kind may take an answer's place."""
    weather, judge = Weather(seed, faults=kind == "stormy", leaving=kind != "calm"), Judge(tokenizer)
    for room in (dedup, shared, waiting):
        monkeypatch.setattr(room, "LEASE_SECONDS", 0.5 if weather.faults else 20.0)
    monkeypatch.setattr(shared, "_FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(shared, "_LONGEST_PAUSE_SECONDS", 0.1)

    async def whole(redis: RedisServer) -> None:
        servers = [
            Server(
                tokenizer,
                entry_metrics,
                redis=redis,
                link=FickleLink(tokenizer, weather),
                cached=cached,
                most=150 if weather.faults else 10_000,
                redis_seconds=0.1 if weather.faults else 5.0,
            )
            for cached in (0, 8, 10_000)
        ]
        async with clean(servers):
            async with around(servers, redis, weather):
                played = await play(servers, weather, judge)
            for server in servers:
                await server.landed()
            await until(lambda: not claims_in(redis), seconds=5.0 if weather.faults else 0.1)
        answered = [asked for asked, was_answered in played if was_answered]
        assert len(answered) > len(played) / 2
        if not weather.faults:
            scored: Counter[bytes] = sum((server.link.scored for server in servers), Counter())  # type: ignore[attr-defined]
            assert judge.sequences(answered) <= scored <= judge.sequences([asked for asked, _ in played])

    with RedisServer() as redis:
        asyncio.run(asyncio.wait_for(whole(redis), 60))
