"""The tier in Redis while Redis takes no writes: what it knows is still used, and the log says why once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cache_parts import calls_of, look_up, make_keys, score_of, scores_of, sharing, states_of, value_of
from parts import played
from script_parts import wait_until

from bento_service.cache import layout
from bento_service.cache import shared as shared_room
from bento_service.cache.shared import SharedCache
from bento_service.metrics import EntryMetrics
from redis_servers import RedisCluster, RedisServer

KNOWN, NEW = make_keys(10, "known"), make_keys(10, "new")
SCORES = scores_of(KNOWN)
UP, AGAIN = "Redis answers: scores are shared with other servers", "Redis takes writes again"
Ways = dict[str, tuple[Callable[[RedisServer], object], Callable[[RedisServer], object]]]


def refused(kind: str) -> str:
    """Write the line for a kind of refusal."""
    return f"Redis refuses writes ({kind}): what it knows is still used, new scores stay in this process"


def fail_to_save(server: RedisServer) -> None:
    """Take away the folder that the server saves to."""
    lost = Path(server.folder / "lost")
    lost.mkdir()
    server._control.config_set("dir", str(lost))
    lost.rmdir()
    server._control.config_set("save", "3600 1")
    server._control.bgsave()
    wait_until(lambda: not server._control.info("persistence")["rdb_bgsave_in_progress"])


REFUSALS: Ways = {
    "READONLY": (lambda server: server._control.replicaof("127.0.0.1", 1), lambda server: server._control.replicaof("NO", "ONE")),
    "OOM": (lambda server: server._control.config_set("maxmemory", 1), lambda server: server._control.config_set("maxmemory", 0)),
    "NOREPLICAS": (
        lambda server: server._control.config_set("min-replicas-to-write", 1),
        lambda server: server._control.config_set("min-replicas-to-write", 0),
    ),
    "MISCONF": (fail_to_save, lambda server: server._control.config_set("save", "")),
    "NOPERM": (
        lambda server: server._control.execute_command("ACL", "SETUSER", "default", "-hset"),
        lambda server: server._control.execute_command("ACL", "SETUSER", "default", "+hset"),
    ),
}


def kind_of(way: str, server: RedisServer) -> str:
    """Find what a refusal is called: Redis 6 has no word for a missing permission."""
    old = int(server._control.info("server")["redis_version"].partition(".")[0]) < 7
    return "REFUSED" if way == "NOPERM" and old else way


async def assert_known(shared: SharedCache) -> None:
    """What was stored before is found."""
    assert (await look_up(shared, KNOWN)).known == {place: score_of(place) for place in range(10)}


async def assert_alone(shared: SharedCache) -> None:
    """What was not is the asker's, of whoever asks: no claim can be written."""
    for token in (b"mine-mine-mi", b"yours-yours-"):
        claim = await look_up(shared, NEW, token)
        assert (claim.known, claim.owned, claim.foreign) == ({}, list(range(10)), [])


@pytest.mark.parametrize("way", REFUSALS)
@played
async def test_a_redis_that_takes_no_writes_still_answers_look_ups(
    way: str, entry_metrics: EntryMetrics, log: Callable[[], list[str]]
) -> None:
    """A replica, a full one, one that cannot save: one line when it begins, one when it ends, and no failure."""
    refuse, accept = REFUSALS[way]
    with RedisServer(maxmemory_policy="noeviction") as server:
        kind = kind_of(way, server)
        async with sharing(server.url, entry_metrics) as shared:
            await shared.settle(KNOWN, SCORES, (), shared.new_token())
            for round_ in (1, 2):
                refuse(server)
                await assert_known(shared)
                assert shared.state == "closed"
                for _ in range(5):
                    await assert_alone(shared)
                    await assert_known(shared)
                    assert (shared.state, states_of(entry_metrics)) == ("read_only", {"read_only": 1})
                    assert (await shared.statistics())["connected"]
                assert value_of(entry_metrics.redis_errors.labels(shared_room._REFUSALS.get(kind, "refused"))) == 10 * round_
                accept(server)
                await assert_known(shared)
                claim = await look_up(shared, NEW)
                assert len(claim.owned) == 10
                assert (shared.state, states_of(entry_metrics)) == ("closed", {"closed": 1})
                await shared.settle(NEW, {}, NEW.pairs, b"looks it up!")
                assert log() == [UP, *[refused(kind), AGAIN] * round_]
            await shared.settle(NEW, scores_of(NEW), (), shared.new_token())
            assert len((await look_up(shared, NEW)).known) == 10


@pytest.mark.parametrize("way", REFUSALS)
@played
async def test_a_store_that_is_refused_is_noticed_and_not_repeated(
    way: str, entry_metrics: EntryMetrics, log: Callable[[], list[str]]
) -> None:
    """Until a claim was taken there is nothing to be gained from trying."""
    refuse, accept = REFUSALS[way]
    with RedisServer(maxmemory_policy="noeviction") as server:
        kind = kind_of(way, server)
        async with sharing(server.url, entry_metrics) as shared:
            await look_up(shared, NEW)
            refuse(server)
            for _ in range(5):
                await shared.settle(NEW, scores_of(NEW), NEW.pairs, b"looks it up!")
            assert (shared.state, log()) == ("read_only", [UP, refused(kind)])
            assert calls_of(server)["evalsha"] == 3
            accept(server)
            assert (await look_up(shared, NEW)).owned == list(range(10))
            await shared.settle(NEW, scores_of(NEW), NEW.pairs, b"looks it up!")
            assert len((await look_up(shared, NEW)).known) == 10
            assert log() == [UP, refused(kind), AGAIN]


@played
async def test_a_full_redis_keeps_its_claims_until_their_leases_end(entry_metrics: EntryMetrics) -> None:
    """Others wait for what was claimed before, and nothing fails."""
    with RedisServer(maxmemory_policy="noeviction") as server:
        async with sharing(server.url, entry_metrics) as one, sharing(server.url, entry_metrics) as other:
            await look_up(one, NEW)
            server._control.config_set("maxmemory", 1)
            assert (await look_up(other, NEW, b"another one!")).foreign == list(range(10))
            await one.renew(NEW, NEW.pairs, (), b"looks it up!")
            assert (one.state, other.state) == ("closed", "closed")


@played
async def test_full_pages_that_cannot_make_room_are_a_refusal_too(
    entry_metrics: EntryMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a replica: look-ups go on."""
    monkeypatch.setattr(layout, "PAGE_PAIRS", 1)
    with RedisServer() as server:
        async with sharing(server.url, entry_metrics) as shared:
            await shared.settle(KNOWN, dict(list(SCORES.items())[:8]), (), shared.new_token())
            server._control.replicaof("127.0.0.1", 1)
            for _ in range(3):
                await shared.settle(KNOWN, dict(list(SCORES.items())[8:]), (), shared.new_token(), overwrite=True)
            assert shared.state == "read_only"
            assert len((await look_up(shared, KNOWN)).known) == 8


@played
async def test_a_cluster_with_one_full_server_says_so_once_a_minute(
    redis_cluster: RedisCluster, entry_metrics: EntryMetrics, log: Callable[[], list[str]]
) -> None:
    """Every few calls meet another server, and each is answered as that server can."""
    redis_cluster.servers[0]._control.config_set("maxmemory", 1)
    try:
        async with sharing(redis_cluster.url, entry_metrics) as shared:
            for number in range(60):
                keys = make_keys(3, f"query {number}")
                assert (await look_up(shared, keys)).owned == [0, 1, 2]
                await shared.settle(keys, scores_of(keys), keys.pairs, b"looks it up!")
        assert len(log()) == 3  # up, refused, taken again
    finally:
        redis_cluster.servers[0]._control.config_set("maxmemory", 0)
