"""The performance summary: quantiles as Prometheus estimates them, figures from true metrics, and a clear end without a server."""

from __future__ import annotations

import subprocess
import sys

import pytest

from performance import Samples, milliseconds, percent, summary
from servers import REPOSITORY, free_port

HEALTH = {
    "status": "degraded",
    "model": {"tag": "m:1", "kind": "bi-encoder", "quantization": "int8", "dtype": "bfloat16", "device": "cpu"},
    "requests": {"total": 200, "success_rate": 0.95},
}
METRICS = """
# TYPE reranker_request_seconds histogram
reranker_request_seconds_bucket{route="/rerank",le="0.1"} 50.0
reranker_request_seconds_bucket{route="/rerank",le="0.2"} 100.0
reranker_request_seconds_bucket{route="/rerank",le="+Inf"} 200.0
# TYPE reranker_requests counter
reranker_requests_total{route="/rerank",status="200"} 190.0
reranker_requests_total{route="/rerank",status="429"} 10.0
reranker_requests_total{route="/metrics",status="200"} 3.0
# TYPE reranker_rejections counter
reranker_rejections_total{code="queue_full"} 10.0
# TYPE reranker_cache_hits counter
reranker_cache_hits_total{tier="process"} 30.0
reranker_cache_hits_total{tier="redis"} 10.0
# TYPE reranker_cache_misses counter
reranker_cache_misses_total 50.0
# TYPE reranker_shared_pairs counter
reranker_shared_pairs_total{scope="process"} 10.0
# TYPE reranker_tokens counter
reranker_tokens_total{kind="real"} 900.0
reranker_tokens_total{kind="computed"} 1000.0
# TYPE reranker_batch_seconds histogram
reranker_batch_seconds_sum 0.5
reranker_batch_seconds_count 4.0
# TYPE reranker_process_resident_bytes gauge
reranker_process_resident_bytes{process="entry-1"} 104857600.0
reranker_process_resident_bytes{process="scorer-1"} 419430400.0
# TYPE reranker_memory_limit_bytes gauge
reranker_memory_limit_bytes 1048576000.0
# TYPE reranker_gpu_memory_used_bytes gauge
reranker_gpu_memory_used_bytes{gpu="0"} 1073741824.0
# TYPE reranker_gpu_memory_bytes gauge
reranker_gpu_memory_bytes{gpu="0"} 2147483648.0
# TYPE reranker_gpu_utilisation_ratio gauge
reranker_gpu_utilisation_ratio{gpu="0"} 0.75
"""


@pytest.mark.parametrize(("share", "seconds"), [(0.25, 0.1), (0.375, 0.15), (0.125, 0.05), (0.5, 0.2), (0.99, 0.2)])
def test_a_quantile_lies_evenly_in_its_bucket(share: float, seconds: float) -> None:
    """And in the last one, which has no end, at its beginning."""
    assert Samples(METRICS).quantile(share, "reranker_request_seconds", route="/rerank") == pytest.approx(seconds)


def test_what_has_not_happened_has_no_figure() -> None:
    """Rather than a zero."""
    nothing = Samples("")
    assert nothing.quantile(0.5, "reranker_request_seconds") is nothing.mean("reranker_batch_pairs") is None
    assert (milliseconds(None), percent(None)) == ("-", "-")
    assert all(text for _, text in summary(HEALTH, nothing))


def test_the_summary_says_what_the_metrics_say() -> None:
    """Requests, refusals, quantiles, caches, padding, speed, memory and GPUs."""
    lines = dict(summary(HEALTH, Samples(METRICS)))
    assert lines["requests"].startswith("200 answered")
    assert "95.0 %" in lines["requests"]
    assert lines["refused"] == "queue_full 10"
    assert lines["/rerank"] == "p50 200 ms, p95 200 ms, p99 200 ms"
    assert "/metrics" not in lines
    assert "40.0 %" in lines["cache"]
    assert "padding 10.0 %; 1,800 tokens/s" in lines["batches"]
    assert lines["memory"].startswith("500 MiB, 50.0 % of 1,000 MiB: scorer-1 400 MiB")
    assert lines["GPU 0"] == "1,024 MiB of 2,048 MiB, 75.0 % busy"


@pytest.mark.parametrize(
    ("url", "words"), [("http://127.0.0.1:{port}", "no server answers at"), ("localhost:3000", "is no http address")]
)
def test_without_a_server_it_ends_with_one_clear_line(url: str, words: str) -> None:
    """And not with 0."""
    script = [sys.executable, str(REPOSITORY / "load" / "performance.py"), "--url", url.format(port=free_port())]
    done = subprocess.run(script, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
