"""A server with a Redis Cluster, and one with sentinels: hits as from a single Redis, also after one of them died."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cache_calls import Load, counts, redis_settings, short, together, wait_for
from redis_servers import RedisCluster, RedisSentinels
from servers import Server

DOCUMENTS = 10
SLOWEST_SECONDS = 5.0
BACK_SECONDS = 10.0


@pytest.fixture(scope="module")
def served(builtin_tag: str) -> Iterator[list[tuple[Server, RedisCluster | RedisSentinels]]]:
    """Start a cluster and a server for it, and sentinels and a server for them; the servers have no cache of their own."""
    assert builtin_tag
    with ExitStack() as running:
        both = []
        for kind in (RedisCluster, RedisSentinels):
            group = running.enter_context(kind())
            settings = redis_settings(group.url) | {"ENABLE_PREDICTION_CACHE": "false"}
            both.append((Server(Path(os.environ["BENTOML_HOME"]), **settings), group))
            running.callback(both[-1][0].stop)
        for server, _ in both:
            server.wait_ready()
        yield both


@pytest.fixture
def clustered(served: list[tuple[Server, RedisCluster]]) -> tuple[Server, RedisCluster]:
    """Return the server with the cluster, and the cluster."""
    return served[0]


@pytest.fixture
def watched(served: list[tuple[Server, RedisSentinels]]) -> tuple[Server, RedisSentinels]:
    """Return the server with the sentinels, and the sentinels."""
    return served[1]


def test_a_cluster_shares_scores_on_all_of_its_nodes(clustered: tuple[Server, RedisCluster]) -> None:
    """Every repeat is a hit, whichever node its query belongs to."""
    server, cluster = clustered
    requests = [(server, short(number, 3)) for number in range(20)]
    assert [counts(answer) for answer in together(requests)] == [(0, 3, 0)] * len(requests)
    assert [counts(answer) for answer in together(requests)] == [(3, 0, 0)] * len(requests)
    assert min(node.client().dbsize() for node in cluster.servers) > 0


def test_health_counts_the_keys_of_all_nodes(clustered: tuple[Server, RedisCluster]) -> None:
    """And the look-ups of all."""
    server, cluster = clustered
    together([(server, short(number, 3)) for number in range(20)])
    report = server.get("/health").json()["distributed_cache"]
    assert (report["enabled"], report["connected"], report["state"]) == (True, True, "closed")
    clients = [node.client() for node in cluster.servers]
    assert report["cached_entries"] == sum(client.dbsize() for client in clients)
    assert report["keyspace_hits"] == sum(client.info("stats")["keyspace_hits"] for client in clients)


def test_a_dead_node_of_a_cluster_fails_no_request(clustered: tuple[Server, RedisCluster]) -> None:
    """Every score is right meanwhile, and hits come back with the node."""
    server, cluster = clustered
    with Load(server, DOCUMENTS, timeout=SLOWEST_SECONDS) as load:
        wait_for("a hit", lambda: load.hits_since(0.0), BACK_SECONDS)
        cluster.servers[0].kill()
        time.sleep(0.5)  # how long it lasts is what is tested
        cluster.servers[0].restart()
        cluster.wait_ok()
        back = time.monotonic()
        waited = wait_for("hits again", lambda: load.hits_since(back), BACK_SECONDS)
    load.check()
    print(f"{len(load.answers)} requests, hits again after {waited:.1f} s")


def test_a_failover_of_sentinels_fails_no_request(watched: tuple[Server, RedisSentinels]) -> None:
    """Every score is right meanwhile; the new master is found, and what was known before is still known."""
    server, sentinels = watched
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
