"""The tier in Redis while Redis is away: nothing raises, nothing hangs, the log says so once, and it comes back by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from cache_parts import calls_of, connected, look_up, make_keys, scores_of, sharing, states_of, until, value_of
from parts import played

from bento_service.cache import layout
from bento_service.cache import shared as room
from bento_service.cache.shared import Claim, SharedCache
from bento_service.metrics import EntryMetrics
from redis_servers import RedisServer

TEN = make_keys(10)
SCORES = scores_of(TEN)
ALONE = Claim(owned=list(range(10)))
NOTHING = {"cached_entries": 0, "keyspace_hits": 0, "keyspace_misses": 0}
UP, DOWN = (
    "Redis answers: scores are shared with other servers",
    "Redis does not answer ({}): scores stay in this process until it does",
)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the breaker's pauses pass in a tenth of the time."""
    monkeypatch.setattr(room, "_FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(room, "_LONGEST_PAUSE_SECONDS", 0.5)


async def use_everything(shared: SharedCache) -> None:
    """Use the tier in every way that a request, a flight and a health page do: without Redis, all pairs are one's own."""
    assert await look_up(shared, TEN) == ALONE
    await shared.settle(TEN, SCORES, TEN.pairs, b"looks it up!")
    await shared.renew(TEN, TEN.pairs, (), b"looks it up!")
    assert await shared.was_cleared(TEN.fingerprint) is False
    assert await shared.statistics() == {"enabled": shared.enabled, "connected": False, "state": shared.state} | NOTHING


async def until_back(shared: SharedCache) -> None:
    """Probe, as housekeeping does, until Redis is used again."""
    for _ in range(500):
        await shared.probe()
        if shared.state == "closed":
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came back")


@played
async def test_without_a_redis_every_pair_is_the_asker_s(entry_metrics: EntryMetrics, log: Callable[[], list[str]]) -> None:
    """Nothing is logged, and no metric shows a state."""
    shared = SharedCache(None, ttl_seconds=600, metrics=entry_metrics)
    assert (shared.enabled, shared.state) == (False, "disabled")
    await shared.probe()
    await use_everything(shared)
    await shared.close()
    assert (states_of(entry_metrics), log(), shared.state) == ({}, [], "disabled")


@played
async def test_before_its_first_answer_redis_is_not_used(redis_server: RedisServer, entry_metrics: EntryMetrics) -> None:
    """A probe decides, so that a start without Redis costs no request anything."""
    async with connected(redis_server.url) as connection:
        shared = SharedCache(connection, ttl_seconds=600, metrics=entry_metrics)
        assert (shared.enabled, shared.state) == (True, "open")
        await use_everything(shared)
        assert connection._client is None
        await shared.probe()
        assert shared.state == "closed"
        assert calls_of(redis_server)["evalsha"] == 1
        await shared.probe()
        assert calls_of(redis_server)["evalsha"] == 1
        assert redis_server._control.dbsize() == 0


@played
async def test_a_redis_that_is_not_there_at_the_start_is_used_when_it_comes(
    entry_metrics: EntryMetrics, log: Callable[[], list[str]]
) -> None:
    """One line each, however often it was asked in between."""
    with RedisServer() as server:
        server.kill()
        async with sharing(server.url, entry_metrics) as shared:
            for _ in range(20):
                await shared.probe()
                await use_everything(shared)
                await asyncio.sleep(0.01)
            assert (shared.state, states_of(entry_metrics), log()) == ("open", {"open": 1}, [DOWN.format("connection")])
            server.restart()
            await until_back(shared)
            assert (states_of(entry_metrics), log()) == ({"closed": 1}, [DOWN.format("connection"), UP])
            await shared.settle(TEN, SCORES, (), shared.new_token())
            assert len((await look_up(shared, TEN)).known) == 10
            assert value_of(entry_metrics.redis_errors.labels("connection")) < 15


@pytest.mark.alone
@played
async def test_a_redis_that_hangs_costs_three_calls_their_time_out(
    entry_metrics: EntryMetrics, log: Callable[[], list[str]]
) -> None:
    """After that nobody asks it, until it has answered a probe; what it knew is known again."""
    with RedisServer() as server:
        async with sharing(server.url, entry_metrics, timeout_seconds=0.1) as shared:
            await shared.settle(TEN, SCORES, (), shared.new_token())
            server.pause()
            waits = []
            for _ in range(3):
                begun = time.monotonic()
                assert shared.state == "closed"
                assert await look_up(shared, TEN) == ALONE
                waits.append(time.monotonic() - begun)
            assert 0.09 < min(waits) <= max(waits) < 0.25
            begun = time.monotonic()
            for _ in range(50):
                await use_everything(shared)
            assert time.monotonic() - begun < 0.1
            assert (shared.state, states_of(entry_metrics)) == ("open", {"open": 1})
            assert value_of(entry_metrics.redis_errors.labels("timeout")) == 3
            await until_probed(shared)
            server.resume()
            await until_back(shared)
            assert len((await look_up(shared, TEN)).known) == 10
            assert log() == [UP, DOWN.format("timeout"), UP]


async def until_probed(shared: SharedCache) -> None:
    """Wait for a probe that fails: while it is under way nobody else asks."""
    await until(lambda: time.monotonic() >= shared._breaker._next_probe)
    probe = asyncio.create_task(shared.probe())
    await until(lambda: shared.state == "half_open")
    assert states_of(shared._metrics) == {"half_open": 1}
    await use_everything(shared)
    await shared.probe()
    assert shared.state == "half_open"
    await probe
    assert shared.state == "open"


@played
async def test_many_requests_that_meet_a_hanging_redis_wait_no_longer_than_one(entry_metrics: EntryMetrics) -> None:
    """They fail together, those included that are in line for a call when nobody asks Redis any more."""
    with RedisServer() as server:
        async with sharing(server.url, entry_metrics, timeout_seconds=0.5) as shared:
            server.pause()
            begun = time.monotonic()
            claims = await asyncio.gather(*(look_up(shared, TEN) for _ in range(200)))
            assert time.monotonic() - begun < 2.0
            assert claims == [ALONE] * 200
            assert shared.state == "open"


@played
async def test_a_wrong_password_is_said_once(entry_metrics: EntryMetrics, log: Callable[[], list[str]]) -> None:
    """And is not in the line; right it is when somebody has set it."""
    with RedisServer(requirepass="right") as server:
        async with sharing(server.url.replace("right", "hunter2"), entry_metrics) as shared:
            for _ in range(5):
                await asyncio.sleep(0.05)
                await shared.probe()
                await use_everything(shared)
            assert log() == [DOWN.format("authentication")]
            server._control.config_set("requirepass", "hunter2")
            await until_back(shared)
            assert log() == [DOWN.format("authentication"), UP]


@played
async def test_a_redis_that_forgets_scripts_or_restarts_is_used_on(
    entry_metrics: EntryMetrics, log: Callable[[], list[str]]
) -> None:
    """Scripts are sent again; a restart within the pause between two requests is not even noticed."""
    with RedisServer() as server:
        async with sharing(server.url, entry_metrics) as shared:
            for forget in (server._control.script_flush, server.restart):
                await shared.settle(TEN, SCORES, (), shared.new_token())
                assert len((await look_up(shared, TEN)).known) == 10
                forget()
            assert await look_up(shared, TEN) == ALONE
            await shared.settle(TEN, SCORES, (), shared.new_token())
            assert len((await look_up(shared, TEN)).known) == 10
            assert (shared.state, log()) == ("closed", [UP])


@played
async def test_a_success_between_failures_keeps_redis_in_use(redis_server: RedisServer, entry_metrics: EntryMetrics) -> None:
    """Two failures are no outage, however often they come."""
    async with sharing(redis_server.url, entry_metrics) as shared:
        bad = layout.CLAIM.replace("local state", "nonsense() local state")
        for _ in range(4):
            for _ in range(2):
                assert (
                    await shared._run("claim", bad, layout.query_keys(TEN.fingerprint, TEN.query), (b"", 1, 1, b""), list) is None
                )
            assert await look_up(shared, TEN) == ALONE
        assert shared.state == "closed"
        assert value_of(entry_metrics.redis_errors.labels("response")) == 8


@played
async def test_a_burst_that_gets_no_turns_does_not_switch_redis_off(
    redis_server: RedisServer, entry_metrics: EntryMetrics
) -> None:
    """Those pairs are the asker's; it says nothing of Redis, which goes on being asked."""
    async with sharing(redis_server.url, entry_metrics, timeout_seconds=0.1) as shared:
        connection = shared._connection
        assert connection
        for _ in range(32):
            await connection._turns.acquire()
        for _ in range(5):
            assert await look_up(shared, TEN) == ALONE
        assert (shared.state, value_of(entry_metrics.redis_errors.labels("busy"))) == ("closed", 5)
        for _ in range(32):
            connection._turns.release()
        assert (await look_up(shared, TEN)).owned == ALONE.owned
        assert len((await look_up(shared, TEN, b"another one!")).foreign) == 10
