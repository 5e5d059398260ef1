"""What the tier in Redis tells of itself: for /health at constant cost, and whether it was cleared."""

from __future__ import annotations

from typing import Any

import pytest
from cache_parts import FINGERPRINT, OTHER_FINGERPRINT, calls_of, look_up, make_keys, scores_of, sharing
from parts import played

from bento_service.cache import layout
from bento_service.cache.shared import STATES, SharedCache
from bento_service.metrics import EntryMetrics
from redis_servers import RedisServer

TEN = make_keys(10)


@played
async def test_statistics_say_what_redis_says(redis_server: RedisServer, entry_metrics: EntryMetrics) -> None:
    """All keys, whoever's they are."""
    async with sharing(redis_server.url, entry_metrics) as shared:
        redis_server._control.mset({f"key{number}": number for number in range(3000)})
        await shared.settle(TEN, scores_of(TEN), (), shared.new_token())
        redis_server._control.config_resetstat()
        await look_up(shared, TEN)
        report = await shared.statistics()
        assert report.pop("keyspace_hits") > 0
        assert report == {
            "enabled": True,
            "connected": True,
            "state": "closed",
            "cached_entries": 3001,
            "keyspace_misses": 1,  # of claims: there are none
        }


@played
async def test_a_report_costs_the_same_however_much_is_stored(redis_server: RedisServer, entry_metrics: EntryMetrics) -> None:
    """A known fault of an earlier design: its health page walked through all keys."""
    async with sharing(redis_server.url, entry_metrics) as shared:
        costs = []
        for keys in (1, 20_000):
            redis_server._control.mset({f"key{number}": number for number in range(keys)})
            redis_server._control.config_resetstat()
            assert (await shared.statistics())["cached_entries"] == keys
            costs.append({name: count for name, count in calls_of(redis_server).items() if not name.startswith("config")})
        assert costs[0] == costs[1] == {"dbsize": 1, "info": 1}


@played
async def test_a_redis_that_dies_is_reported_as_not_connected(entry_metrics: EntryMetrics) -> None:
    """Once that is known; a report by itself, which may only lack a permission, does not switch the cache off."""
    with RedisServer() as server:
        async with sharing(server.url, entry_metrics) as shared:
            server.kill()
            reports: list[dict[str, Any]] = [await shared.statistics() for _ in range(4)]
            for _ in range(3):
                assert not await shared.was_cleared(FINGERPRINT)
            reports.append(await shared.statistics())
    nothing = {"enabled": True, "cached_entries": 0, "keyspace_hits": 0, "keyspace_misses": 0}
    assert reports[:4] == [nothing | {"connected": True, "state": "closed"}] * 4
    assert reports[4] == nothing | {"connected": False, "state": "open"}


@played
async def test_a_clear_is_told_once_to_each_worker(redis_server: RedisServer, entry_metrics: EntryMetrics) -> None:
    """Also to one that starts after it; and again after the next."""
    async with sharing(redis_server.url, entry_metrics) as one, sharing(redis_server.url, entry_metrics) as other:
        assert [await worker.was_cleared(FINGERPRINT) for worker in (one, other)] == [False, False]
        for mark in ("1", "2"):
            redis_server._control.set(layout.cleared_key(FINGERPRINT), mark)
            assert await one.was_cleared(FINGERPRINT) is True
            assert await one.was_cleared(FINGERPRINT) is False
            assert [await other.was_cleared(FINGERPRINT) for _ in range(3)] == [True, False, False]


@played
async def test_a_clear_that_a_worker_could_not_see_is_told_when_it_can(
    redis_server: RedisServer, entry_metrics: EntryMetrics
) -> None:
    """Its memory may be older than the clear, because Redis was away from its start; once is enough."""
    redis_server._control.set(layout.cleared_key(FINGERPRINT), "1")
    async with sharing(redis_server.url, entry_metrics) as shared:
        assert [await shared.was_cleared(FINGERPRINT) for _ in range(3)] == [True, False, False]


@played
async def test_another_model_s_clear_and_the_end_of_a_mark_are_none(
    redis_server: RedisServer, entry_metrics: EntryMetrics
) -> None:
    """The mark goes after a day, and what was forgotten stays so."""
    async with sharing(redis_server.url, entry_metrics) as shared:
        redis_server._control.set(layout.cleared_key(OTHER_FINGERPRINT), "1")
        assert await shared.was_cleared(FINGERPRINT) is False
        redis_server._control.set(layout.cleared_key(FINGERPRINT), "2")
        assert await shared.was_cleared(FINGERPRINT) is True
        redis_server._control.delete(layout.cleared_key(FINGERPRINT))
        assert await shared.was_cleared(FINGERPRINT) is False


@played
async def test_a_clear_while_redis_was_away_is_told_later(entry_metrics: EntryMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that could not ask for a while asks again."""
    monkeypatch.setattr("bento_service.cache.shared._FIRST_PAUSE_SECONDS", 0.0)
    with RedisServer() as server:
        async with sharing(server.url, entry_metrics) as shared:
            server._control.set(layout.cleared_key(FINGERPRINT), "1")
            assert await shared.was_cleared(FINGERPRINT) is True  # perhaps before this worker knew anything
            server.kill()
            assert [await shared.was_cleared(FINGERPRINT) for _ in range(4)] == [False] * 4
            assert shared.state == "open"
            server.restart()
            server.client().set(layout.cleared_key(FINGERPRINT), "2")
            await shared.probe()
            assert await shared.was_cleared(FINGERPRINT) is True


def test_every_state_has_its_own_name(entry_metrics: EntryMetrics) -> None:
    """As the metric's label; without a Redis there is none."""
    assert STATES == ("closed", "open", "half_open", "read_only")
    assert SharedCache(None, ttl_seconds=1, metrics=entry_metrics).state not in STATES
