"""Deduplication over a Redis that fails: it costs a computation at most, never an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dedup_parts import WINDOW, Server, claims_in, make_tokenizer, raws, served, until
from pipeline_parts import FINGERPRINT

from bento_service import dedup, waiting
from bento_service.cache import layout, shared
from bento_service.cache.keys import pair_keys
from bento_service.errors import ScorerFailed
from bento_service.metrics import EntryMetrics
from bento_service.pairs import KnownScore
from bento_service.schemas import RerankQuery
from bento_service.tokenizer import PairTokenizer
from redis_servers import RedisServer

KEYS = pair_keys(RerankQuery("q", []), ["a", "b"], fingerprint=FINGERPRINT, max_length=WINDOW)
CLAIMS, PAGE, *_ = layout.query_keys(FINGERPRINT, KEYS.query)


@pytest.fixture(scope="module")
def tokenizer(builtin_folder: Path) -> Iterator[PairTokenizer]:
    """Load the built-in model's tokenizer once."""
    with make_tokenizer(builtin_folder) as made:
        yield made


@pytest.fixture
def dedup_redis() -> Iterator[RedisServer]:
    """Start a Redis."""
    with RedisServer() as running:
        yield running


@pytest.fixture
def servers(tokenizer: PairTokenizer, entry_metrics: EntryMetrics, dedup_redis: RedisServer) -> list[Server]:
    """Make two servers over one Redis that may take 0.2 s for a call."""
    return [Server(tokenizer, entry_metrics, redis=dedup_redis, redis_seconds=0.2) for _ in range(2)]


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a lease pass in a moment."""
    for room in (dedup, shared, waiting):
        monkeypatch.setattr(room, "LEASE_SECONDS", 0.4)


def make_read_only(redis: RedisServer) -> None:
    """Let it wait for a master that is not there."""
    redis.client().replicaof("127.0.0.1", "9")


@pytest.mark.parametrize(
    "break_", [RedisServer.kill, RedisServer.pause, RedisServer.restart, make_read_only], ids=lambda how: how.__name__
)
@pytest.mark.usefixtures("short_lease")
@served
async def test_who_waits_for_another_server_computes_itself_when_redis_fails(
    servers: list[Server], dedup_redis: RedisServer, break_: Callable[[RedisServer], None]
) -> None:
    """At once, or where claims can be read but not renewed, after a lease; the owner is not disturbed."""
    for server in servers:
        server.link.pairs_per_second = 0.1  # patience is no reason
    owner = servers[0].ask("a")
    call = await servers[0].link.calls.get()
    waiting = [servers[1].ask("a", "b") for _ in range(2)]
    assert await servers[1].answer() == ["b"]
    await servers[1].waits_for_others()
    break_(dedup_redis)
    assert await servers[1].answer() == ["a"]
    assert [raws(result) for result in await asyncio.gather(*waiting)] == [servers[0].truth("a", "b")] * 2
    assert not owner.done()
    call.answer()
    assert raws(await owner) == servers[0].truth("a")
    assert [server.link.asked for server in servers] == [["a"], ["b", "a"]]


@pytest.mark.parametrize("break_", [RedisServer.kill, RedisServer.pause, make_read_only], ids=lambda how: how.__name__)
@pytest.mark.usefixtures("short_lease")
@served
async def test_without_redis_each_server_remembers_and_shares_alone(
    servers: list[Server], dedup_redis: RedisServer, break_: Callable[[RedisServer], None]
) -> None:
    """Also when it fails between claiming and storing."""
    asked = [server.ask("a", "b") for server in [servers[0]] * 3]
    call = await servers[0].link.calls.get()
    break_(dedup_redis)
    call.answer()
    await asyncio.gather(*asked)
    for server, misses in ((servers[1], 2), (servers[0], 0), (servers[1], 0)):
        assert await server.known("a", "b") == (server.truth("a", "b"), (2 - misses, misses, 0))


@served
async def test_a_redis_that_comes_back_is_used_again(servers: list[Server], dedup_redis: RedisServer) -> None:
    """Once a probe was answered; what is known here is not sent after."""
    dedup_redis.kill()
    for text in "abc":
        await servers[0].known(text)
    assert servers[0].shared.state == "open"
    dedup_redis.restart()
    servers[0].shared._breaker._next_probe = 0.0
    await servers[0].shared.probe()
    await servers[0].known("d")
    assert (await servers[1].known("a", "d"))[1] == (1, 1, 0)
    assert claims_in(dedup_redis) == []


@pytest.mark.parametrize("kind", ["value", "other", "nan", "page", "claim", "claims", "future"])
@served
async def test_rubbish_under_our_keys_is_not_believed(servers: list[Server], dedup_redis: RedisServer, kind: str) -> None:
    """Of whatever length and type; the pair is computed, and the rubbish does not stay in the way."""
    client, pair = dedup_redis.client(), KEYS.pairs[0]
    if kind == "value":
        client.hset(PAGE, pair, b"rubbish")
    elif kind == "claim":
        client.hset(CLAIMS, pair, b"rubbish" * 10)
    elif kind == "future":  # when the clock of Redis was set back
        client.hset(CLAIMS, pair, bytes(layout.TOKEN_BYTES) + b"99999999999999:99999999999999")
    elif kind == "other":
        client.hset(PAGE, pair, layout.pack_value(KEYS.pairs[1], KnownScore(1.0, 1, truncated=False)))
    elif kind == "nan":
        client.hset(PAGE, pair, layout.pack_value(pair, KnownScore(float("nan"), 1, truncated=False)))
    else:
        client.set(PAGE if kind == "page" else CLAIMS, "rubbish")
    for server, counts in ((servers[0], (0, 1, 0)), (servers[0], (1, 0, 0)), (servers[1], (1, 0, 0))):
        assert await server.known("a", seconds=3.0) == (server.truth("a"), counts)
    assert claims_in(dedup_redis) == []


class Lag:
    """Holds one kind of call of a server's to Redis, on its way there or on its way back, whether or not its caller stays."""

    def __init__(self, server: Server, script: str, *, before: bool) -> None:
        assert server.connection
        self.reached, self.over = asyncio.Event(), asyncio.Event()
        self._run, self._script, self._before = server.connection.run_script, script, before
        self._calls: set[asyncio.Task[Any]] = set()
        server.connection.run_script = self.run_script  # type: ignore[method-assign]

    async def run_script(self, script: str, *given: Any, **_: Any) -> Any:
        """Pass it on, sooner or later."""
        if script != self._script:
            return await self._run(script, *given)
        call = asyncio.create_task(self._lagging(script, *given))
        self._calls.add(call)
        return await asyncio.shield(call)

    async def end(self) -> None:
        """Let everything arrive."""
        self.over.set()
        await asyncio.wait(self._calls)

    async def _lagging(self, *given: Any) -> Any:
        answer = None if self._before else await self._run(*given)
        self.reached.set()
        await self.over.wait()
        return await self._run(*given) if self._before else answer


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("script", [layout.CLAIM, layout.SETTLE], ids=["claim", "settle"])
@served
async def test_who_leaves_during_a_call_to_redis_leaves_no_claim_and_no_score_behind(
    servers: list[Server], dedup_redis: RedisServer, script: str, before: bool
) -> None:
    """It may have been run by then, or not."""
    lag = Lag(servers[0], script, before=before)
    servers[0].link.held = False
    leaving = servers[0].ask("a")
    await lag.reached.wait()
    leaving.cancel()
    for _ in range(3):
        await asyncio.sleep(0)
    await lag.end()
    await servers[0].landed()
    assert claims_in(dedup_redis) == []
    assert (await servers[1].known("a"))[1] == ((0, 1, 0) if script == layout.CLAIM else (1, 0, 0))


@pytest.mark.usefixtures("short_lease")
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(
    "stays",
    [False, True],
    ids=["leaves", "stays"],
)
@served
async def test_what_is_stored_while_claims_are_renewed_is_stored_all_the_same(
    servers: list[Server], dedup_redis: RedisServer, stays: bool, before: bool
) -> None:
    """Whether the caller stays until then or not."""
    lag = Lag(servers[0], layout.RENEW, before=before)
    asked = servers[0].ask("a")
    call = await servers[0].link.calls.get()
    await lag.reached.wait()
    call.answer()
    await until(lambda: not servers[0].flights[0].unanswered)
    for _ in range(3):
        await asyncio.sleep(0)
    if not stays:
        asked.cancel()
    for _ in range(3):
        await asyncio.sleep(0)
    await lag.end()
    await asyncio.wait({asked})
    await servers[0].landed()
    assert claims_in(dedup_redis) == []
    assert (await servers[1].known("a"))[1] == (1, 0, 0)


@pytest.mark.usefixtures("short_lease")
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@served
async def test_what_is_given_back_while_claims_are_renewed_stays_given_back(
    servers: list[Server], dedup_redis: RedisServer, before: bool
) -> None:
    """A renewal that comes afterwards would claim what nobody computes any more."""
    lag = Lag(servers[0], layout.RENEW, before=before)
    asked = servers[0].ask("a")
    call = await servers[0].link.calls.get()
    await lag.reached.wait()
    call.answer(failed={"a"})
    with pytest.raises(ScorerFailed):
        await asked
    await asyncio.sleep(0.05)  # in which the release would be through, if it did not wait for the renewal
    await lag.end()
    await servers[0].landed()
    assert claims_in(dedup_redis) == []
    assert (await servers[1].known("a"))[1] == (0, 1, 0)


@served
async def test_stopping_does_not_disturb_the_end_of_what_was_dropped(servers: list[Server], dedup_redis: RedisServer) -> None:
    """What is with a Scorer at that moment is awaited, stored, and its claim released."""
    leaving = servers[0].ask("a")
    call = await servers[0].link.calls.get()
    leaving.cancel()
    await asyncio.wait({leaving})
    [flight] = servers[0].flights
    await until(lambda: not flight._wanted)
    for _ in range(3):
        await asyncio.sleep(0)
    stopping = asyncio.create_task(servers[0].dedup.stop())
    for _ in range(3):
        await asyncio.sleep(0)
    call.answer()
    await stopping
    await servers[0].dedup.stop()
    assert claims_in(dedup_redis) == []
    assert (await servers[1].known("a"))[1] == (1, 0, 0)
