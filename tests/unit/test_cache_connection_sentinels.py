"""The client of Redis behind sentinels: the master they name is used, whoever of them or of the servers dies."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from cache_parts import BYTES, assert_works, connected, look_up, make_keys, sharing, until
from parts import played

from bento_service.errors import RedisFailed
from bento_service.metrics import EntryMetrics
from redis_servers import RedisSentinels, RedisServer


@pytest.fixture(scope="module")
def sentinels() -> Iterator[RedisSentinels]:
    """Start a master, its replica and three sentinels; the last test that asks for them kills the master."""
    with RedisSentinels() as running:
        yield running


@played
async def test_sentinels_name_the_master(sentinels: RedisSentinels) -> None:
    """Asked anew, they name it again; the database is the URL's."""
    async with connected(sentinels.url[:-1] + "3") as connection:
        await connection.reconnect()
        await assert_works(connection)
        ours = [each["addr"] for each in sentinels.master._control.client_list() if each["cmd"] == "get"]
        assert ours
        assert sentinels.master.client(db=3).get("key") == BYTES
        await connection.reconnect()
        await assert_works(connection)
        assert not {each["addr"] for each in sentinels.master._control.client_list()} & set(ours)


@played
async def test_closing_closes_the_connections_to_sentinels(sentinels: RedisSentinels) -> None:
    """Not only to the master they name."""
    ports = {sentinel.port for sentinel in sentinels.sentinels}

    def ours() -> set[int]:
        sockets = psutil.Process().net_connections(kind="tcp")
        return {each.laddr.port for each in sockets if each.raddr and each.raddr.port in ports and each.status == "ESTABLISHED"}

    before = ours()
    async with connected(sentinels.url) as connection:
        await assert_works(connection)
        await connection.reconnect()
        assert ours() > before
        await connection.close()
        await until(lambda: ours() <= before, seconds=0.5)


@played
async def test_a_master_that_takes_no_writes_is_asked_for_anew(sentinels: RedisSentinels, entry_metrics: EntryMetrics) -> None:
    """Another one may have taken its place, while our connections still lead to it."""
    control = sentinels.master._control

    def ours() -> set[str]:
        return {each["addr"] for each in control.client_list() if each["cmd"] in ("eval", "evalsha")}

    async with sharing(sentinels.url, entry_metrics) as shared:
        await look_up(shared, make_keys(3))
        before = ours()
        assert before
        control.config_set("maxmemory", 1)
        await look_up(shared, make_keys(3, "another"))
        control.config_set("maxmemory", 0)
        assert shared.state == "read_only"
        await shared.probe()
        await until(lambda: not before & ours())
        assert shared.state == "closed"
        assert (await look_up(shared, make_keys(3, "another"))).owned == [0, 1, 2]


@pytest.mark.parametrize("end", [RedisServer.kill, RedisServer.pause])
@played
async def test_a_sentinel_that_is_gone_is_passed_over(sentinels: RedisSentinels, end: Any) -> None:
    """Also the first that is named: the others are there for that."""
    with RedisServer() as gone:
        end(gone)
        url = sentinels.url.replace("://", f"://127.0.0.1:{gone.port},")
        async with connected(url, timeout_seconds=0.5) as connection:
            with contextlib.suppress(RedisFailed):
                await assert_works(connection)
            await assert_works(connection)


@played
async def test_the_master_that_sentinels_have_chosen_is_used(sentinels: RedisSentinels) -> None:
    """Once they have; until then calls fail and nothing hangs."""
    async with connected(sentinels.url, timeout_seconds=0.5) as connection:
        await assert_works(connection)
        sentinels.master.kill()
        with pytest.raises(RedisFailed):
            await assert_works(connection)
        assert await asyncio.to_thread(sentinels.wait_failover) == sentinels.replica.port
        await assert_works(connection, "another key")
    assert sentinels.replica._control.get("another key") == BYTES
