"""The client of Redis on real servers: every kind of address works, and many calls at once are bounded."""

from __future__ import annotations

import asyncio
import threading

import pytest
from cache_parts import BYTES, STORE, assert_works, calls_of, connected, until
from parts import played

from bento_service.cache.connection import check_address
from bento_service.errors import RedisFailed, SettingsError
from bento_service.redis_url import parse_redis_url
from redis_servers import RedisCluster, RedisServer


@played
async def test_a_single_server_runs_scripts(redis_server: RedisServer) -> None:
    """Over TCP, in any of its databases, and with options in the URL."""
    for url in (redis_server.url, redis_server.url[:-1] + "3", redis_server.url + "?health_check_interval=1&client_name=tests"):
        async with connected(url) as connection:
            await assert_works(connection)
    assert redis_server._control.dbsize() == 1
    assert redis_server.client(db=3).get("key") == BYTES


@played
async def test_a_server_runs_scripts_over_its_socket(redis_server: RedisServer) -> None:
    """And the start does not refuse it."""
    check_address(parse_redis_url(redis_server.url_unix))
    async with connected(redis_server.url_unix) as connection:
        await assert_works(connection)


@pytest.mark.parametrize("database", ["", "?db=3"])
@played
async def test_a_server_asks_for_its_password(database: str) -> None:
    """It stands in the URL, percent-encoded."""
    with RedisServer(requirepass="p@ss/wörd%") as server:
        async with connected(server.url + database) as connection:
            await assert_works(connection)


@played
async def test_a_cluster_runs_each_script_where_its_keys_are(redis_cluster: RedisCluster) -> None:
    """Also when a single node is named."""
    first = redis_cluster.servers[0]
    for url in (redis_cluster.url, f"redis+cluster://127.0.0.1:{first.port}"):
        async with connected(url) as connection:
            for number in range(30):
                await assert_works(connection, f"key{number}")
        sizes = [server._control.dbsize() for server in redis_cluster.servers]
        assert sum(sizes) == 30
        assert min(sizes) > 0


@played
async def test_a_cluster_asks_for_its_password(redis_cluster: RedisCluster) -> None:
    """One user and password for all of its nodes."""
    nodes = redis_cluster.url.removeprefix("redis+cluster://")
    for server in redis_cluster.servers:
        server._control.execute_command("ACL", "SETUSER", "someone", "on", ">p@ss", "~*", "+@all")
    async with connected(f"redis+cluster://someone:p%40ss@{nodes}") as connection:
        await assert_works(connection)
    async with connected(f"redis+cluster://someone:wrong@{nodes}") as connection:
        with pytest.raises(RedisFailed):
            await assert_works(connection)


@played
async def test_a_script_is_sent_as_a_whole_once(redis_server: RedisServer) -> None:
    """After that by its hash; again when the server has forgotten it."""
    async with connected(redis_server.url) as connection:
        for round_ in (1, 2):
            for _ in range(5):
                await connection.run_script(STORE, ["key"], [BYTES, 7])
            calls = calls_of(redis_server)
            assert (calls["eval"], calls["evalsha"]) == (round_, 5 * round_)
            redis_server._control.script_flush()
        redis_server._control.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await assert_works(connection)


@played
async def test_calls_beyond_32_at_once_wait_for_their_turn(redis_server: RedisServer) -> None:
    """All of them are answered, each with its own, on no more connections than calls at once."""
    async with connected(redis_server.url, timeout_seconds=5.0) as connection:
        answers = await asyncio.gather(*(connection.run_script(STORE, [f"{n}"], [b"%d" % n, n]) for n in range(500)))
        clients = redis_server._control.client_list()
    assert answers == [[b"%d" % number, 2, number] for number in range(500)]
    assert 2 < len(clients) <= 32 + len(redis_server._clients)


@played
async def test_statistics_count_a_whole_server(redis_server: RedisServer) -> None:
    """Its keys and look-ups; without walking through the keys."""
    async with connected(redis_server.url) as connection:
        redis_server._control.mset({f"key{number}": number for number in range(200)})
        assert await connection.get("key1")
        assert await connection.get("nothing") is None
        assert await connection.statistics() == {"cached_entries": 200, "keyspace_hits": 1, "keyspace_misses": 1}
    assert not {"keys", "scan"} & set(calls_of(redis_server))


@played
async def test_statistics_count_a_whole_cluster(redis_cluster: RedisCluster) -> None:
    """All nodes together."""
    for server in redis_cluster.servers:
        server._control.config_resetstat()
    async with connected(redis_cluster.url) as connection:
        for number in range(30):
            await assert_works(connection, f"key{number}")
        assert await connection.statistics() == {"cached_entries": 30, "keyspace_hits": 60, "keyspace_misses": 30}


GOOD = (
    "redis://localhost",
    "redis://user:word@[::1]:6379/3",
    "rediss://localhost:6380/0?ssl_cert_reqs=none&ssl_ca_certs=/ca.pem",
)
MORE_GOOD = (
    "redis+cluster://a:1,b:2",
    "redis+sentinel://:word@a:1,b:2/mymaster/3",
    "redis://localhost/?health_check_interval=1&db=3",
)


@pytest.mark.parametrize("url", GOOD + MORE_GOOD)
def test_an_address_is_checked_without_a_server(url: str) -> None:
    """The start does not wait for one."""
    before = threading.active_count()
    check_address(parse_redis_url(url))
    assert threading.active_count() == before


@pytest.mark.parametrize("url", ["rediss://:hunter2@a?ssl_cert_reqs=maybe"])
def test_a_value_that_the_client_does_not_know_is_refused(url: str) -> None:
    """In one line that names the setting and not the password; otherwise every call would fail, and quietly."""
    with pytest.raises(SettingsError, match=r"^REDIS_URL has an option or value that") as caught:
        check_address(parse_redis_url(url))
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


@played
async def test_closing_closes_the_connections(redis_server: RedisServer) -> None:
    """Twice is once, and before the first call it is nothing."""
    before = len(redis_server._control.client_list())
    async with connected(redis_server.url) as connection:
        await connection.close()
        await asyncio.gather(*(assert_works(connection, str(number)) for number in range(9)))
        await connection.close()
        await connection.close()
        await until(lambda: len(redis_server._control.client_list()) == before)
