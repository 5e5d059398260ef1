"""The Redis servers of the other tests: real ones that die, pause, share slots and fail over when asked to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from redis_servers import RedisCluster, RedisSentinels, RedisServer, redis_binary


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """Start one server for the tests that leave it running."""
    with RedisServer() as running:
        yield running


def test_a_server_answers_over_tcp_and_over_its_socket(server: RedisServer) -> None:
    """Both reach one store, and its memory is known."""
    server.client().set("key", b"\xff")
    with redis.Redis.from_url(server.url_unix) as client:
        assert client.get("key") == b"\xff"
    assert server.used_memory() > 100_000


def test_a_restarted_server_is_empty_on_the_same_port(server: RedisServer) -> None:
    """A client is refused in between and works again after."""
    client = server.client()
    client.set("key", "value")
    server.kill()
    with pytest.raises(redis.exceptions.ConnectionError):
        client.ping()
    server.restart()
    assert client.dbsize() == 0


def test_a_paused_server_lets_clients_time_out_until_it_resumes(server: RedisServer) -> None:
    """The one that is connected and a new one."""
    connected, new = server.client(socket_timeout=0.2), server.client(socket_timeout=0.2)
    assert connected.ping()
    server.pause()
    for client in (connected, new):
        with pytest.raises(redis.exceptions.TimeoutError):
            client.ping()
    server.resume()
    assert connected.ping()
    assert new.ping()


def test_a_password_and_a_memory_limit_are_the_servers_own() -> None:
    """Without the password nothing is answered; a list is a directive of several words."""
    with RedisServer(requirepass="pass/word", maxmemory="2mb", client_output_buffer_limit=("normal", 0, 0, 0)) as server:
        assert server.client().config_get("maxmemory") == {"maxmemory": "2097152"}
        for url in (server.url, server.url_unix):
            with redis.Redis.from_url(url) as client:
                assert client.ping()
        stranger = server.client(password=None)
        with pytest.raises(redis.exceptions.AuthenticationError):
            stranger.ping()


def test_a_stopped_server_leaves_nothing() -> None:
    """Neither a process nor a folder, paused or not, and a second stop is no error."""
    with RedisServer() as server:
        server.pause()
        server.stop()
        assert server.process.returncode is not None
        assert not server.folder.exists()


def test_a_server_that_cannot_start_shows_its_log() -> None:
    """And is cleaned away at once."""
    server = RedisServer(maxmemory="much")
    with pytest.raises(AssertionError, match="argument must be a memory value"):
        server.wait_ready()
    assert not server.folder.exists()


def test_the_environment_names_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong name is an error that says so, not another server."""
    binary = redis_binary()
    monkeypatch.setenv("REDIS_SERVER", str(binary))
    assert redis_binary() == binary
    monkeypatch.setenv("REDIS_SERVER", str(Path(__file__)))
    with pytest.raises(AssertionError, match="REDIS_SERVER"):
        redis_binary()


def test_a_cluster_stores_keys_on_each_of_its_masters() -> None:
    """One key for each third of the slots, through a client that knows only the first node."""
    with RedisCluster() as cluster:
        with redis.RedisCluster(host="127.0.0.1", port=cluster.servers[0].port) as client:
            for number in range(60):
                client.set(f"key{number}", number)
        sizes = [server.client().dbsize() for server in cluster.servers]
    assert min(sizes) > 0
    assert sum(sizes) == 60


def test_sentinels_promote_the_replica_of_a_killed_master() -> None:
    """With what was stored, and it takes new keys."""
    with RedisSentinels() as sentinels:
        master = sentinels.master.client()
        master.set("key", "value")
        assert master.wait(1, 1000) == 1
        sentinels.master.kill()
        assert sentinels.wait_failover() == sentinels.replica.port
        assert sentinels.replica.client().get("key") == b"value"
        sentinels.replica.client().set("key", "new")
