"""A run of the real things that gives every panel and every recording rule something to show, and makes some alerts fire."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mixed_traffic import MixedTraffic, clients
from prometheus_server import PrometheusServer
from redis_servers import RedisServer
from servers import Server

FIRE = {"RerankerQueueFull", "RerankerSuccessLow", "RerankerRedisAway", "RerankerCacheHitRatioLow"}
SLOW = {
    "RerankerServerDown",
    "RerankerWaitLong",
}  # what a busy machine makes fire, which answers a scrape after a second or waits for 5
FIRING = 'ALERTS{{alertname="{}", alertstate="firing"}}'
_WORKERS = 2
_SETTINGS = {
    "RERANKER_WORKERS": _WORKERS,
    "RERANKER_TORCH_THREADS": 1,
    "RERANKER_CACHE_ENTRIES": 100,
    "RERANKER_MAX_QUEUE_PAIRS": 400,
    "REDIS_ENABLED": True,
}


@contextmanager
def real_run(home: Path) -> Iterator[PrometheusServer]:
    """Yield a Prometheus that has seen hits, misses, repeats, cut documents, mistakes, a full queue, and a Redis that went away and came back."""
    with (
        RedisServer() as redis,
        Server(home, REDIS_URL=redis.url, **_SETTINGS) as server,
        PrometheusServer([f"127.0.0.1:{server.port}"]) as prometheus,
    ):
        prometheus.wait_for("reranker_scorers_up == 1")
        with clients(server.port, MixedTraffic(1, documents=10), 4):
            prometheus.wait_for('rate(reranker_cache_hits_total{tier="redis"}[5s]) > 0')
            prometheus.wait_for('rate(reranker_cache_evictions_total{reason="full"}[5s]) > 0')
            prometheus.wait_for('rate(reranker_rejections_total{code="documents_empty"}[5s]) > 0')
            prometheus.wait_for("rate(reranker_shared_pairs_total[5s]) > 0")
            redis.pause()
            prometheus.wait_for("rate(reranker_redis_errors_total[5s]) > 0")
            prometheus.wait_for(FIRING.format("RerankerRedisAway"))
            redis.resume()
            prometheus.wait_for(f'reranker_redis_state{{state="closed"}} == {_WORKERS}')
        with clients(server.port, MixedTraffic(2, documents=30, new=1.0), 24):
            prometheus.wait_for('rate(reranker_rejections_total{code="queue_full"}[5s]) > 0')
            for alert in FIRE:
                prometheus.wait_for(f"last_over_time({FIRING.format(alert)}[10m])")
        yield prometheus
