"""A Redis that goes away, comes back, refuses or talks rubbish under a server: no request notices, and hits come back."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bento_service.cache.layout import TOKEN_BYTES, VALUE_BYTES
from cache_calls import KEYS, Load, ask, counts, redis_settings, scores, short, stored, wait_for
from redis_servers import RedisServer
from servers import Server, free_port

PASSWORD = "planted-password-4c7e"
OTHER_PASSWORD = "another-password-9b13"
DOCUMENTS = 10
SLOWEST_SECONDS = 5.0
BACK_SECONDS = 10.0
LOST, CHANGED = ["does not answer", "answers"], ["refuses writes", "takes writes again"]


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """Make a Redis with a password; it is not there yet when the server starts."""
    with RedisServer(requirepass=PASSWORD) as running:
        running.kill()
        yield running


@pytest.fixture(scope="module")
def server(builtin_tag: str, redis: RedisServer) -> Iterator[Server]:
    """Serve the built-in model with no cache but Redis."""
    assert builtin_tag
    settings = redis_settings(redis.url) | {"ENABLE_PREDICTION_CACHE": "false"}
    with Server(Path(os.environ["BENTOML_HOME"]), **settings) as running:
        yield running


@pytest.fixture
def in_use(server: Server, redis: RedisServer) -> Server:
    """Return the server once it uses Redis."""
    if redis.process.poll() is not None:
        redis.restart()
    wait_for("Redis in use", lambda: server.get("/health").json()["distributed_cache"]["connected"], BACK_SECONDS)
    return server


def states(log: str) -> list[str]:
    """Find what a log says of Redis."""
    return re.findall(r"Redis (answers|does not answer|refuses writes|takes writes again)", log)


def test_a_server_starts_without_redis_and_finds_it_later(server: Server, redis: RedisServer) -> None:
    """Ready without it, and hits as soon as it is there."""
    request = short(1, DOCUMENTS)
    for _ in range(2):
        assert counts(ask(server, request)) == (0, DOCUMENTS, 0)
    assert states(server.log) == LOST[:1]
    redis.restart()
    with Load(server, DOCUMENTS, timeout=SLOWEST_SECONDS) as load:
        seconds = wait_for("a hit", lambda: load.hits_since(0.0), BACK_SECONDS)
    load.check()
    print(f"hits {seconds:.1f} s after Redis came")
    assert states(server.log) == LOST


def test_rubbish_under_our_keys_makes_room(in_use: Server, redis: RedisServer) -> None:
    """Whatever its kind: the answer is right, and the next one comes from Redis."""
    client = redis.client()

    def as_another_kind(key: bytes) -> None:
        client.delete(key)
        client.rpush(key, "rubbish")

    def as_values_of(value: bytes) -> Callable[[bytes], None]:
        return lambda key: client.hset(key, mapping=dict.fromkeys(client.hkeys(key), value))

    def as_claims_of(value: bytes) -> Callable[[bytes], None]:
        def spoil(key: bytes) -> None:
            client.hset(key.rpartition(b":")[0] + b":claims", mapping=dict.fromkeys(client.hkeys(key), value))
            client.delete(key)

        return spoil

    def as_claims_of_another_kind(key: bytes) -> None:
        client.delete(key)
        client.set(key.rpartition(b":")[0] + b":claims", "rubbish")

    far_ahead = b"x" * TOKEN_BYTES + b"99999999999999:99999999999999:0"
    spoilers = [as_another_kind, as_claims_of_another_kind, *map(as_claims_of, (b"", b"rubbish", b"x" * 40, far_ahead))]
    spoilers += map(as_values_of, (b"", b"rubbish", b"x" * VALUE_BYTES, b"\xff" * VALUE_BYTES))
    for seed, spoil in enumerate(spoilers, 50):
        request = short(seed, DOCUMENTS)
        known = set(client.scan_iter(KEYS))
        right = ask(in_use, request, "no-cache")
        [page] = set(client.scan_iter(KEYS)) - known
        spoil(page)
        for _ in range(2):
            again = ask(in_use, request, timeout=SLOWEST_SECONDS)
            assert scores(again) == pytest.approx(scores(right), abs=1e-5)
        assert counts(again) == (DOCUMENTS, 0, 0), f"{seed}: {spoil}"
    assert stored(redis) >= DOCUMENTS


def test_an_unusable_address_stops_the_start(builtin_tag: str) -> None:
    """One line that names REDIS_URL and holds no password, whatever part of it is wrong."""
    assert builtin_tag
    home = Path(os.environ["BENTOML_HOME"])
    urls = [f"redis://:{PASSWORD}@127.0.0.1:port/0", f"redis://:{PASSWORD}@127.0.0.1:6379/0?colour=red"]
    with ExitStack() as started:
        servers = [Server(home, **redis_settings(url)) for url in urls]
        for server in servers:
            started.callback(server.stop)
        for server in servers:
            assert server.wait_exit(60) != 0
            [line] = [line for line in server.log.splitlines() if "serve` failed" in line]
            assert "REDIS_URL" in line
            assert PASSWORD not in server.log
            assert "Traceback" not in server.log


def _is_killed(redis: RedisServer, restore: ExitStack) -> None:
    redis.kill()
    restore.callback(redis.restart)


def _is_paused(redis: RedisServer, restore: ExitStack) -> None:
    redis.pause()
    restore.callback(redis.resume)


def _is_read_only(redis: RedisServer, restore: ExitStack) -> None:
    client = redis.client()
    client.execute_command("REPLICAOF", "127.0.0.1", free_port())
    restore.callback(client.execute_command, "REPLICAOF", "NO", "ONE")


def _is_full(redis: RedisServer, restore: ExitStack) -> None:
    client = redis.client()
    client.config_set("maxmemory", 1)
    restore.callback(client.config_set, "maxmemory", 0)


def _wants_another_password(redis: RedisServer, restore: ExitStack) -> None:
    client = redis.client()
    client.config_set("requirepass", OTHER_PASSWORD)
    client.execute_command("CLIENT", "KILL", "TYPE", "normal")
    restore.callback(client.config_set, "requirepass", PASSWORD)


def _is_restarted_empty(redis: RedisServer, _: ExitStack) -> None:
    redis.restart()


def _is_flushed(redis: RedisServer, _: ExitStack) -> None:
    client = redis.client()
    client.flushall()
    client.script_flush()


@pytest.mark.parametrize(
    ("strike", "seconds", "lines"),
    [
        (_is_flushed, 0.5, [[]]),
        (_is_read_only, 1.0, [CHANGED]),
        (_is_full, 1.0, [CHANGED]),
        (_is_killed, 1.0, [LOST]),
        (_is_paused, 3.0, [LOST]),
        (_wants_another_password, 1.0, [LOST]),
        (_is_restarted_empty, 0.0, [[], LOST]),
    ],
)
def test_a_fault_of_redis_fails_no_request(
    in_use: Server,
    redis: RedisServer,
    strike: Callable[[RedisServer, ExitStack], None],
    seconds: float,
    lines: list[list[str]],
) -> None:
    """Every score is right, hits come back, and the log has one line for each change of state and no password."""
    before = len(in_use.log)
    with Load(in_use, DOCUMENTS, timeout=SLOWEST_SECONDS) as load:
        wait_for("a hit", lambda: load.hits_since(0.0), BACK_SECONDS)
        with ExitStack() as restore:
            strike(redis, restore)
            time.sleep(seconds)  # how long it lasts is what is tested
        back = time.monotonic()
        waited = wait_for("hits again", lambda: load.hits_since(back), BACK_SECONDS)
    load.check()
    print(f"{len(load.answers)} requests, hits again after {waited:.1f} s")
    assert states(in_use.log[before:]) in lines
    assert PASSWORD not in in_use.log
