"""The client of Redis: every kind of address, bounded in time and in number of calls, its errors in our words."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import Any, TypeVar

from redis import exceptions
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from bento_service.errors import RedisFailed, SettingsError
from bento_service.redis_url import FORMS, RedisAddress

T = TypeVar("T")
# Calls at once; a call takes about a millisecond, so more would only wait inside Redis.
_MOST_CALLS = 32
# A burst of requests keeps this process from its answers; each look at the clock sees to those that have come, so what lies between
# two looks counts as one share of the time-out, however long it took.
_LOOKS = 8
# What a call waits for its turn, three time-outs: with it, a look-up and a store together cost a request no more than a lease. One look
# less, or whether those behind three rounds of calls that time out still get a turn would be a matter of luck.
_TURN_LOOKS = 3 * _LOOKS - 1
_CLOSE_SECONDS = 1.0
_CANCEL_AGAIN_SECONDS = 0.01
# redis-py's own timer would end a call whose answer came while this process was held up; ours looks once more.
_CLIENT_PATIENCE = 4
_KINDS: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.AuthenticationError, "authentication"),
    (exceptions.NoPermissionError, "authentication"),
    (exceptions.ReadOnlyError, "read_only"),
    (exceptions.OutOfMemoryError, "out_of_memory"),
    (exceptions.TimeoutError, "timeout"),
    (TimeoutError, "timeout"),
    (exceptions.BusyLoadingError, "loading"),
    (exceptions.ClusterError, "cluster"),
    (exceptions.AskError, "cluster"),  # MOVED, too: one node of a cluster under a redis:// URL
    (exceptions.RedisClusterException, "cluster"),
    (exceptions.ConnectionError, "connection"),
    (OSError, "connection"),
    (exceptions.ResponseError, "response"),
)


class Connection:
    """Runs commands, a few at once; timeout_seconds bounds each, connecting included, from when its turn has come.

    All raise RedisFailed: `busy` where no turn came, which says nothing of Redis.
    """

    def __init__(self, address: RedisAddress, *, timeout_seconds: float) -> None:
        self._address = address
        self._timeout_seconds = timeout_seconds
        self._client: Any = None
        self._turns = asyncio.Semaphore(_MOST_CALLS)

    @property
    def is_cluster(self) -> bool:
        """Whether there are several servers, of which some may be gone."""
        return self._address.kind == "cluster"

    async def run_script(
        self,
        script: str,
        keys: Sequence[str],
        arguments: Sequence[bytes | int],
        *,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> Any:
        """Run a script, by its hash where the server knows it, if it is still wanted when its turn has come. Raises RedisFailed."""
        return await self._bounded(lambda client: _run_script(client, script, keys, arguments), is_wanted)

    async def get(self, key: str) -> bytes | None:
        """GET. Raises RedisFailed."""
        value: bytes | None = await self._bounded(lambda client: client.get(key))
        return value

    async def statistics(self) -> dict[str, int]:
        """Count keys and look-ups of the whole server or cluster, at a cost that does not depend on their number. Raises RedisFailed."""
        if self._address.kind == "cluster":  # which else asks any one node
            everywhere = {"target_nodes": RedisCluster.PRIMARIES}
            keys = await self._bounded(lambda client: client.dbsize(**everywhere))
            info = await self._bounded(lambda client: client.info("stats", **everywhere))
            nodes = [info] if "keyspace_hits" in info else list(dict(info).values())  # a single node answers for itself
        else:
            keys = await self._bounded(lambda client: client.dbsize())
            nodes = [await self._bounded(lambda client: client.info("stats"))]
        try:
            return {
                "cached_entries": int(keys),
                **{name: sum(int(node[name]) for node in nodes) for name in ("keyspace_hits", "keyspace_misses")},
            }
        except (TypeError, ValueError, KeyError):  # something that is no Redis
            raise RedisFailed("unexpected") from None

    async def reconnect(self) -> None:
        """Ask for the master's address anew, by name or by sentinel: the one that is known takes no writes. Raises RedisFailed."""
        if self._address.kind != "cluster" and self._client is not None:
            await self._bounded(lambda client: client.connection_pool.disconnect(inuse_connections=False))

    async def close(self) -> None:
        """Close all connections; safe to call twice."""
        client, self._client = self._client, None
        if client is not None:
            try:
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await client.aclose()
                    if self._address.kind == "sentinel":
                        for sentinel in client.connection_pool.sentinel_manager.sentinels:
                            await sentinel.aclose()
            except (exceptions.RedisError, OSError, TimeoutError):
                return  # it is being closed because it is no longer wanted

    async def _bounded(self, work: Callable[[Any], Awaitable[T]], is_wanted: Callable[[], bool] = lambda: True) -> T:
        await self._take_turn()
        if not is_wanted():
            self._turns.release()
            raise RedisFailed("busy")
        call = asyncio.ensure_future(self._call(work))
        call.add_done_callback(lambda _: self._turns.release())  # an abandoned call has its turn until it ends
        try:
            if await self._comes(call):
                return call.result()
        except Exception as error:
            # Whatever it is: a cache that fails must not fail a request.
            raise RedisFailed(next((kind for known, kind in _KINDS if isinstance(error, known)), "unexpected")) from error
        finally:
            _abandon(call)
        raise RedisFailed("timeout")

    async def _take_turn(self) -> None:
        if not self._turns.locked():
            await self._turns.acquire()
            return
        turn = asyncio.ensure_future(self._turns.acquire())
        try:
            if not await self._comes(turn, looks=_TURN_LOOKS):
                raise RedisFailed("busy")
        except asyncio.CancelledError:
            if turn.done():
                self._turns.release()
            raise
        finally:
            turn.cancel()

    async def _comes(self, awaited: asyncio.Future[Any], *, looks: int = _LOOKS) -> bool:
        """Wait for something to be done, so many looks at it long; what holds this process up counts little."""
        for _ in range(looks):
            await asyncio.wait({awaited}, timeout=self._timeout_seconds / _LOOKS)
            if awaited.done():
                return True
        return False

    async def _call(self, work: Callable[[Any], Awaitable[T]]) -> T:
        if self._client is None:
            self._client = make_client(self._address, timeout_seconds=self._timeout_seconds)
        return await work(self._client)


@cache
def _name(script: str) -> str:
    """Name a script as Redis does."""
    return hashlib.sha1(script.encode()).hexdigest()  # noqa: S324  not for security


async def _run_script(client: Any, script: str, keys: Sequence[str], arguments: Sequence[bytes | int]) -> Any:
    try:
        return await client.evalsha(_name(script), len(keys), *keys, *arguments)
    except exceptions.NoScriptError:
        return await client.eval(script, len(keys), *keys, *arguments)


def make_client(address: RedisAddress, *, timeout_seconds: float) -> Any:
    """Make redis-py's asyncio client for an address; it connects with its first command."""
    shared: dict[str, Any] = {
        "socket_timeout": _CLIENT_PATIENCE * timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
    }
    # One more try at once, for a connection that broke while it was idle.
    retry = Retry(NoBackoff(), 1)
    if address.kind == "single":
        return Redis.from_url(address.url, retry=retry, **shared)
    shared |= {"username": address.username, "password": address.password}
    if address.kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in address.nodes]
        # Some servers of a cluster may be gone: the others still serve their slots.
        return RedisCluster(startup_nodes=nodes, retry=retry, require_full_coverage=False, **shared)
    # They are asked one after the other: one that hangs must leave time for the next.
    share = timeout_seconds / (len(address.nodes) + 1)
    asking = {"socket_timeout": share, "socket_connect_timeout": share, "retry": Retry(NoBackoff(), 0)}
    sentinel = Sentinel(list(address.nodes), sentinel_kwargs=asking)  # type: ignore[no-untyped-call]
    return sentinel.master_for(address.service, db=address.db, retry=retry, **shared)


def check_address(address: RedisAddress) -> None:
    """Make a client as far as that goes without a server; SettingsError where the URL has options that redis-py does not know."""
    try:
        client = make_client(address, timeout_seconds=1.0)
        if address.kind == "single":
            client.connection_pool.make_connection()
    except (ValueError, TypeError, exceptions.RedisError):
        raise SettingsError(f"REDIS_URL has an option or value that its client does not know: write {FORMS}") from None


def _abandon(call: asyncio.Future[Any]) -> None:
    """Cancel a call until it has ended: the wait_for of Python 3.11, which redis-py uses, may swallow a cancellation."""
    if not call.done():
        call.cancel()
        call.add_done_callback(_retrieve)
        asyncio.get_running_loop().call_later(_CANCEL_AGAIN_SECONDS, _abandon, call)


def _retrieve(call: asyncio.Future[Any]) -> None:
    """Look at an abandoned call's exception, so that asyncio does not log it as never retrieved."""
    if not call.cancelled():
        call.exception()
