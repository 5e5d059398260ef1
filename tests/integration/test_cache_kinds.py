"""A server with a Redis Cluster, and one with sentinels: hits as from a single Redis, also after one of them died."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache_calls import Load, counts, redis_settings, serving, short, together, wait_for
from redis_servers import RedisCluster, RedisSentinels
from servers import Server

DOCUMENTS = 10
SLOWEST_SECONDS = 5.0
BACK_SECONDS = 10.0


@pytest.fixture(scope="module")
def groups() -> Iterator[tuple[RedisCluster, RedisSentinels]]:
    """Start a cluster, and a master with its replica and sentinels."""
    with RedisCluster() as cluster, RedisSentinels() as sentinels:
        yield cluster, sentinels


@pytest.fixture(scope="module")
def servers(builtin_tag: str, groups: tuple[RedisCluster, RedisSentinels]) -> Iterator[list[Server]]:
    """Start a server for each, with no cache of its own."""
    assert builtin_tag
    home = Path(os.environ["BENTOML_HOME"])
    settings = [redis_settings(group.url) | {"ENABLE_PREDICTION_CACHE": "false"} for group in groups]
    with serving(*(Server(home, **own) for own in settings)) as running:
        yield running


def test_a_cluster_shares_scores_on_all_of_its_nodes(servers: list[Server], groups: tuple[RedisCluster, RedisSentinels]) -> None:
    """Every repeat is a hit, whichever node its query belongs to."""
    server, cluster = servers[0], groups[0]
    requests = [(server, short(number, 3)) for number in range(20)]
    assert [counts(answer) for answer in together(requests)] == [(0, 3, 0)] * len(requests)
    assert [counts(answer) for answer in together(requests)] == [(3, 0, 0)] * len(requests)
    assert min(node.client().dbsize() for node in cluster.servers) > 0


def test_health_counts_the_keys_of_all_nodes(servers: list[Server], groups: tuple[RedisCluster, RedisSentinels]) -> None:
    """And the look-ups of all."""
    together([(servers[0], short(number, 3)) for number in range(20)])
    report = servers[0].get("/health").json()["distributed_cache"]
    assert (report["enabled"], report["connected"], report["state"]) == (True, True, "closed")
    clients = [node.client() for node in groups[0].servers]
    assert report["cached_entries"] == sum(client.dbsize() for client in clients)
    assert report["keyspace_hits"] == sum(client.info("stats")["keyspace_hits"] for client in clients)


def test_a_dead_node_of_a_cluster_fails_no_request(servers: list[Server], groups: tuple[RedisCluster, RedisSentinels]) -> None:
    """Every score is right meanwhile, and hits come back with the node."""
    server, cluster = servers[0], groups[0]
    with Load(server, DOCUMENTS, timeout=SLOWEST_SECONDS) as load:
        wait_for("a hit", lambda: load.hits_since(0.0), BACK_SECONDS)
        cluster.servers[0].kill()
        time.sleep(1.0)  # how long it lasts is what is tested
        cluster.servers[0].restart()
        cluster.wait_ok()
        back = time.monotonic()
        waited = wait_for("hits again", lambda: load.hits_since(back), BACK_SECONDS)
    load.check()
    requests = [(server, short(100 + number, 3)) for number in range(20)]
    together(requests)
    assert [counts(answer) for answer in together(requests)] == [(3, 0, 0)] * len(requests)
    print(f"{len(load.answers)} requests, hits again after {waited:.1f} s")


def test_a_failover_of_sentinels_fails_no_request(servers: list[Server], groups: tuple[RedisCluster, RedisSentinels]) -> None:
    """Every score is right meanwhile; the new master is found, and what was known before is still known."""
    server, sentinels = servers[1], groups[1]
    known = [(server, short(200 + number, 3)) for number in range(5)]
    together(known)
    assert [counts(answer) for answer in together(known)] == [(3, 0, 0)] * len(known)
    with Load(server, DOCUMENTS, timeout=SLOWEST_SECONDS) as load:
        wait_for("a hit", lambda: load.hits_since(0.0), BACK_SECONDS)
        sentinels.master.kill()
        sentinels.wait_failover()
        over = time.monotonic()
        waited = wait_for("hits again", lambda: load.hits_since(over), BACK_SECONDS)
    load.check()
    assert [counts(answer) for answer in together(known)] == [(3, 0, 0)] * len(known)
    assert server.get("/health").json()["distributed_cache"]["connected"]
    print(f"{len(load.answers)} requests, hits again after {waited:.1f} s")
