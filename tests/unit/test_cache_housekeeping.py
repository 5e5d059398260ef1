"""Housekeeping: Redis is asked whether it is back, old entries are swept, and a clear reaches every worker."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest
from cache_parts import FINGERPRINT, OTHER_FINGERPRINT, Clock, connected, score_of, sharing, until, value_of
from parts import played

from bento_service.cache import housekeeping as room
from bento_service.cache import layout
from bento_service.cache.housekeeping import Housekeeping
from bento_service.cache.local import LocalCache
from bento_service.cache.shared import SharedCache
from bento_service.metrics import EntryMetrics
from redis_servers import RedisServer

KEY = bytes(16)
FORGOTTEN = "the cache was cleared: this process forgets too"


@pytest.fixture(autouse=True)
def _short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let half a second between rounds pass in a hundredth."""
    monkeypatch.setattr(room, "_ROUND_SECONDS", 0.005)


@pytest.fixture
def local(entry_metrics: EntryMetrics) -> LocalCache:
    """Make a cache with one entry."""
    cache = LocalCache(max_entries=10, ttl_seconds=600.0, metrics=entry_metrics)
    cache.put(KEY, score_of(1))
    return cache


class Sweeper(LocalCache):
    """Counts its sweeps; `error` is what one raises."""

    def __init__(self, metrics: EntryMetrics) -> None:
        super().__init__(max_entries=10, ttl_seconds=600.0, metrics=metrics)
        self.sweeps, self.rounds = 0, 0
        self.error: Exception | None = None

    def sweep(self) -> None:
        """Count, and raise what is to be raised."""
        self.sweeps += 1
        if self.error:
            raise self.error
        super().sweep()

    def report_size(self) -> None:
        """Count: each round ends so."""
        self.rounds += 1
        super().report_size()


@contextlib.asynccontextmanager
async def keeping(
    local: LocalCache,
    shared: SharedCache,
    *,
    fingerprint: Callable[[], str | None] = lambda: FINGERPRINT,
    sweep_seconds: float = 3600.0,
) -> AsyncIterator[Housekeeping]:
    """Offer housekeeping that has started and is stopped in the end."""
    keeper = Housekeeping(local, shared, fingerprint=fingerprint, sweep_seconds=sweep_seconds)
    await keeper.start()
    try:
        yield keeper
    finally:
        await keeper.stop()


def without_redis(metrics: EntryMetrics) -> SharedCache:
    """Make the tier of a server that has no Redis."""
    return SharedCache(None, ttl_seconds=1, metrics=metrics)


@played
async def test_a_clear_is_heard_by_every_worker(
    redis_server: RedisServer, entry_metrics: EntryMetrics, local: LocalCache, log: Callable[[], list[str]]
) -> None:
    """Each forgets what it has in its own memory, once."""
    async with sharing(redis_server.url, entry_metrics) as shared, keeping(local, shared):
        await until(lambda: FINGERPRINT in shared._cleared)
        for mark in ("1", "2"):
            local.put(KEY, score_of(1))
            assert local.get(KEY)
            redis_server._control.set(layout.cleared_key(FINGERPRINT), mark)
            await until(lambda: local.get(KEY) is None)
        local.put(KEY, score_of(1))
        rounds = redis_server._control.info("commandstats")["cmdstat_get"]["calls"]
        await until(lambda: redis_server._control.info("commandstats")["cmdstat_get"]["calls"] > rounds + 2)
        assert local.get(KEY)
        assert log().count(FORGOTTEN) == 2


@played
async def test_another_model_s_clear_concerns_nobody_here(
    redis_server: RedisServer, entry_metrics: EntryMetrics, local: LocalCache
) -> None:
    """Until that model is the one that is served; while none is known, nothing is asked."""
    served: list[str | None] = [None]
    redis_server._control.set(layout.cleared_key(OTHER_FINGERPRINT), "1")
    async with sharing(redis_server.url, entry_metrics) as shared, keeping(local, shared, fingerprint=lambda: served[0]):
        await until(lambda: value_of(entry_metrics.cache_entries) == 1)
        assert "cmdstat_get" not in redis_server._control.info("commandstats")
        served[0] = FINGERPRINT
        await until(lambda: redis_server._control.info("commandstats").get("cmdstat_get", {}).get("calls", 0) > 2)
        assert local.get(KEY)
        served[0] = OTHER_FINGERPRINT
        await until(lambda: OTHER_FINGERPRINT in shared._cleared)
        redis_server._control.set(layout.cleared_key(OTHER_FINGERPRINT), "2")
        await until(lambda: local.get(KEY) is None)


@played
async def test_a_redis_that_is_away_is_asked_again_until_it_is_back(
    entry_metrics: EntryMetrics, local: LocalCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start does not wait for it longer than for one answer, nor does it fail."""
    monkeypatch.setattr("bento_service.cache.shared._FIRST_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr("bento_service.cache.shared._LONGEST_PAUSE_SECONDS", 0.05)
    with RedisServer() as server:
        server.kill()
        async with connected(server.url) as connection:
            shared = SharedCache(connection, ttl_seconds=600, metrics=entry_metrics)
            async with keeping(local, shared):
                assert shared.state == "open"
                server.restart()
                await until(lambda: shared.state == "closed")
                server.kill()
                await until(lambda: shared.state == "open")


@played
async def test_redis_is_asked_before_the_start_is_over(
    redis_server: RedisServer, entry_metrics: EntryMetrics, local: LocalCache
) -> None:
    """So the first request can use it."""
    async with connected(redis_server.url) as connection:
        shared = SharedCache(connection, ttl_seconds=600, metrics=entry_metrics)
        async with keeping(local, shared):
            assert shared.state == "closed"
        assert connection._client is None


@played
async def test_a_sweep_comes_every_so_often(entry_metrics: EntryMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not before; a round without one still reports the size."""
    clock, local = Clock(), Sweeper(entry_metrics)
    monkeypatch.setattr(room, "time", clock)

    async def rounds() -> int:
        begun = local.rounds
        await until(lambda: local.rounds >= begun + 3)
        return local.sweeps

    async with keeping(local, without_redis(entry_metrics), sweep_seconds=60.0):
        swept = []
        for step in (0.0, 59.0, 1.0, 59.0, 1.0, 300.0):
            clock.now += step
            swept.append(await rounds())
    assert swept == [0, 0, 1, 1, 2, 3]


@played
async def test_a_sweep_forgets_what_is_too_old_in_an_idle_worker(entry_metrics: EntryMetrics) -> None:
    """And the metrics show it."""
    local = LocalCache(max_entries=10, ttl_seconds=0.03, metrics=entry_metrics)
    async with keeping(local, without_redis(entry_metrics), sweep_seconds=0.01):
        local.put(KEY, score_of(1))
        await until(lambda: value_of(entry_metrics.cache_entries) == 1)
        await until(lambda: value_of(entry_metrics.cache_evictions.labels("expired")) == 1)
        await until(lambda: value_of(entry_metrics.cache_entries) == 0)


@pytest.mark.parametrize("error", [RuntimeError("xyzzy"), OSError("xyzzy"), KeyError("xyzzy")], ids=repr)
@played
async def test_a_round_that_stumbles_is_logged_and_the_next_one_comes(
    error: Exception, entry_metrics: EntryMetrics, log: Callable[[], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it was; with the reason."""
    local = Sweeper(entry_metrics)
    local.error = error
    async with keeping(local, without_redis(entry_metrics), sweep_seconds=0.001):
        await until(lambda: local.sweeps >= 3)
        assert local.rounds == 0
        local.error = None
        await until(lambda: local.rounds >= 3)
    assert set(log()) == {"the caches' housekeeping stumbled and goes on"}
    assert "xyzzy" in caplog.text


@played
async def test_starting_and_stopping_twice_is_once(
    redis_server: RedisServer, entry_metrics: EntryMetrics, local: LocalCache
) -> None:
    """Nothing runs on, no connection stays open, and it can start again."""
    before, clients = asyncio.all_tasks(), len(redis_server._control.client_list())
    async with sharing(redis_server.url, entry_metrics) as shared:
        keeper = Housekeeping(local, shared, fingerprint=lambda: FINGERPRINT, sweep_seconds=3600.0)
        await keeper.stop()
        for _ in range(2):
            await keeper.start()
            task = keeper._task
            await keeper.start()
            assert keeper._task is task
            await keeper.stop()
            await keeper.stop()
            assert asyncio.all_tasks() == before
            await until(lambda: len(redis_server._control.client_list()) == clients)
