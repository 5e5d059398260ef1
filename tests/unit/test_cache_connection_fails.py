"""The client of Redis when Redis fails: bounded in time, in our words, and never another call's answer."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from cache_parts import answering, assert_works, calls_of, connected, draws, until
from parts import played

from bento_service.cache.connection import Connection
from bento_service.errors import RedisFailed
from redis_servers import RedisServer

ECHO = "return {KEYS[1], ARGV[1]}"


async def failure(connection: Connection, script: str = ECHO, key: str = "key") -> str:
    """Run a script that fails: the kind of the failure."""
    with pytest.raises(RedisFailed) as caught:
        await connection.run_script(script, [key], [b"x", 1])
    return str(caught.value)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"-WRONGPASS invalid username-password pair\r\n", "authentication"),
        (b"-NOAUTH Authentication required.\r\n", "authentication"),
        (b"-NOPERM this user has no permissions\r\n", "authentication"),
        (b"-READONLY You can't write against a read only replica.\r\n", "read_only"),
        (b"-OOM command not allowed when used memory > 'maxmemory'.\r\n", "out_of_memory"),
        (b"-LOADING Redis is loading the dataset in memory\r\n", "loading"),
        (b"-CLUSTERDOWN The cluster is down\r\n", "cluster"),
        (b"-BUSY Redis is busy running a script.\r\n", "response"),
        (b"-ERR anything\r\n", "response"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "unexpected"),
        (b"", "connection"),
    ],
)
@played
async def test_a_failure_is_told_by_its_kind(answer: bytes, kind: str) -> None:
    """A metric has it as its label, and the log as a reason."""
    async with answering(answer) as url, connected(url) as connection:
        assert await failure(connection) == kind


@played
async def test_a_broken_script_is_a_failure(redis_server: RedisServer) -> None:
    """And the connection is as good as before."""
    async with connected(redis_server.url) as connection:
        for script in ("return redis.call('NONSENSE')", "return nonsense(", "return redis.call('LPUSH', KEYS[1], 'x')"):
            redis_server._control.set("key", "value")
            assert await failure(connection, script) == "response"
        await assert_works(connection)


@played
async def test_a_server_that_is_not_there_is_a_failure(redis_server: RedisServer) -> None:
    """At once, and whatever kind it should be."""
    with RedisServer() as gone:
        gone.kill()
        begun = time.monotonic()
        async with connected(gone.url) as connection:
            assert await failure(connection) == "connection"
        async with connected(f"redis+cluster://127.0.0.1:{gone.port}") as connection:
            assert await failure(connection) == "cluster"
        async with connected(f"redis+cluster://127.0.0.1:{redis_server.port}") as connection:
            assert await failure(connection) == "cluster"
        assert time.monotonic() - begun < 2


@played
async def test_a_wrong_password_is_a_failure_of_its_own() -> None:
    """As is a user who may not do what is needed."""
    with RedisServer(requirepass="right") as server:
        server._control.execute_command("ACL", "SETUSER", "reader", "on", ">word", "~*", "+get")
        for user in (":wrong@", "", "reader:word@"):
            async with connected(f"redis://{user}127.0.0.1:{server.port}") as connection:
                assert await failure(connection) == "authentication"


@played
async def test_a_connection_that_broke_while_it_was_idle_is_made_anew(redis_server: RedisServer) -> None:
    """Nobody notices."""
    async with connected(redis_server.url) as connection:
        for _ in range(3):
            await assert_works(connection)
            redis_server._control.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


@pytest.mark.parametrize("warm", [True, False])
@played
async def test_every_call_is_bounded_by_the_time_out(warm: bool) -> None:
    """Those that are connected, that connect, and then those that wait for their turn."""
    with RedisServer() as server:
        async with connected(server.url, timeout_seconds=0.2) as connection:
            if warm:
                await assert_works(connection)
            server.pause()
            begun, before = time.monotonic(), asyncio.all_tasks()
            calls = [failure(connection), *(failure(connection, key=str(number)) for number in range(99))]
            ends = await asyncio.gather(*calls)
            assert set(ends) == {"timeout", "busy"}
            assert 96 >= ends.count("timeout") >= 64  # a turn is waited for three time-outs long
            assert 0.59 < time.monotonic() - begun < 2.0
            # Nothing goes on that nobody waits for; Python 3.11 may lose a cancellation, until the client itself gives up.
            await until(lambda: asyncio.all_tasks() == before, seconds=2.5)
            assert connection._turns._value == 32
            begun = time.monotonic()
            await connection.close()
            assert time.monotonic() - begun < 1.5


@played
async def test_a_call_that_gets_no_turn_says_nothing_of_redis(redis_server: RedisServer) -> None:
    """Nor one that nobody wants any more when its turn comes: it is not sent."""
    async with connected(redis_server.url, timeout_seconds=0.1) as connection:
        for _ in range(32):
            await connection._turns.acquire()
        assert await failure(connection) == "busy"
        for _ in range(32):
            connection._turns.release()
        with pytest.raises(RedisFailed, match="busy"):
            await connection.run_script(ECHO, ["key"], [b"x"], is_wanted=lambda: False)
        assert "evalsha" not in calls_of(redis_server)
        assert connection._turns._value == 32
        await assert_works(connection)


@played
async def test_a_burst_of_calls_finds_a_healthy_redis_healthy(redis_server: RedisServer) -> None:
    """Where each answer makes work for this process, which then comes to the other answers late."""
    async with connected(redis_server.url, timeout_seconds=0.25) as connection:
        await asyncio.gather(*(connection.get("key") for _ in range(32)))

        async def ask() -> None:
            await connection.get("key")
            time.sleep(0.005)  # noqa: ASYNC251  that is the work

        await asyncio.gather(*(ask() for _ in range(200)))


@played
async def test_after_time_outs_every_call_gets_its_own_answer() -> None:
    """What Redis still says to the calls that have given up reaches nobody."""
    with RedisServer() as server:
        server._control.mset({f"key{number}": f"value{number}" for number in range(80)})
        async with connected(server.url, timeout_seconds=0.5) as connection:
            for first in (0, 40):
                await asyncio.gather(*(connection.get(f"key{number}") for number in range(first, first + 40)))
                server.pause()
                calls = [connection.get(f"key{number}") for number in range(first, first + 40)]
                assert all(isinstance(end, RedisFailed) for end in await asyncio.gather(*calls, return_exceptions=True))
                server.resume()
                for number in range(80):
                    assert await connection.get(f"key{number}") == b"value%d" % number
            await assert_works(connection)


@played
async def test_after_cancelled_calls_every_call_gets_its_own_answer(redis_server: RedisServer) -> None:
    """Wherever they were: waiting for their turn, connecting, sending or reading."""
    drawn = draws(17)
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    async with connected(redis_server.url) as connection:

        async def ask(number: int) -> None:
            answer = await connection.run_script(ECHO, [f"{number}"], [b"%d" % number])
            assert answer == [b"%d" % number] * 2

        for _ in range(30):
            calls = [asyncio.create_task(ask(number)) for number in range(60)]
            for _ in range(drawn.randint(0, 12)):
                await asyncio.sleep(0)
            gone = drawn.sample(calls, 45)
            for call in gone:
                call.cancel()
            ends = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(end) for end in ends} <= {type(None), asyncio.CancelledError}
            assert sum(end is None for end in ends) >= len(calls) - len(gone)
        await asyncio.gather(*(ask(number) for number in range(100)))
        assert connection._turns._value == 32
    assert errors == []


@played
async def test_an_answer_that_came_in_time_is_not_late_because_we_are(redis_server: RedisServer) -> None:
    """It lay in the socket while something else held this process up for longer than the time-out."""
    async with connected(redis_server.url, timeout_seconds=0.3) as connection:

        def ask() -> list[asyncio.Task[Any]]:
            return [asyncio.create_task(connection.run_script(ECHO, [f"{number}"], [b"x"])) for number in range(20)]

        for steps in (6, 8, 10, 12):
            while any(isinstance(end, RedisFailed) for end in await asyncio.gather(*ask(), return_exceptions=True)):
                pass  # until all are connected
            calls = ask()
            for _ in range(steps):
                await asyncio.sleep(0)
            time.sleep(0.4)  # noqa: ASYNC251  that is the point
            assert await asyncio.gather(*calls) == [[b"%d" % number, b"x"] for number in range(20)]
