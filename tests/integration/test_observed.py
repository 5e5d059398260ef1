"""What a real server with four entry workers tells of itself: counters that add up, one trace, JSON logs, a summary."""

from __future__ import annotations

import http.client
import itertools
import json
import random
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from servers import REPOSITORY, Server
from trace_receiver import TraceReceiver

WORKERS, CLIENTS, REQUESTS = 4, 6, 40
ROUTES = ("/rerank", "/v1/rerank", "/v2/rerank", "/score")
CONFIG = """
services:
  tracing:
    exporter_type: otlp
    sample_rate: 0.0
    otlp:
      protocol: http
      endpoint: {endpoint}
"""


@pytest.fixture(scope="module")
def receiver() -> Iterator[TraceReceiver]:
    """Start what the server sends its spans to."""
    with TraceReceiver() as started:
        yield started


@pytest.fixture(scope="module")
def server(builtin_folder: Path, receiver: TraceReceiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start a server that traces what its callers trace, writes JSON and has a small queue."""
    config = tmp_path_factory.mktemp("tracing") / "bentoml.yaml"
    config.write_text(CONFIG.format(endpoint=receiver.endpoint))
    settings = {"RERANKER_WORKERS": WORKERS, "RERANKER_LOG_FORMAT": "json", "RERANKER_MAX_QUEUE_PAIRS": 8 * WORKERS}
    with Server(builtin_folder.parents[2], BENTOML_CONFIG=config, OTEL_BSP_SCHEDULE_DELAY=100, **settings) as started:
        yield started


def _client(server: Server, seed: int) -> Counter[str]:
    """Send all kinds of requests, some refused, over connections of their own; what the answers say, added up."""
    choose, seen = random.Random(seed), Counter[str]()  # noqa: S311  no secrets are drawn
    for _ in range(REQUESTS):
        route = choose.choice(ROUTES)
        documents = [f"text {choose.randrange(40)}" for _ in range(choose.randrange(5))]
        body = {"queries" if route == "/score" else "query": "q", "documents": documents}
        kind = "text/plain" if choose.random() < 0.1 else "application/json"
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request("POST", route, json.dumps(body), {"content-type": kind})
        status = connection.getresponse().status
        connection.close()
        seen[f"{route} {status}"] += 1
        seen["refused"] += status != http.client.OK
    return seen


def _samples(server: Server) -> dict[tuple[str, ...], float]:
    """Read /metrics, by name and label values."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(server.get("/metrics").text)
        for sample in family.samples
    }


def _by_route(samples: dict[tuple[str, ...], float], name: str) -> dict[str, float]:
    return {" ".join(key[1:]): value for key, value in samples.items() if key[0] == name and key[1] in ROUTES}


def test_counters_over_all_workers_add_up_to_the_requests_sent(server: Server) -> None:
    """Exactly: by route and status, in histograms and in the access log, whichever worker answered, refused ones included."""
    before = _samples(server)
    with ThreadPoolExecutor(CLIENTS) as pool:
        seen = sum(pool.map(lambda seed: _client(server, seed), range(CLIENTS)), Counter[str]())
    refused = seen.pop("refused")
    answered = dict(seen)
    assert seen.total() == CLIENTS * REQUESTS
    assert {"200", "400", "415"} <= {key.split()[1] for key in answered}
    end = time.monotonic() + 10
    while True:  # a worker counts a request once its last byte is sent, which its caller may see first
        samples = _samples(server)
        counted = _by_route(samples, "reranker_requests_total")
        if counted == answered or time.monotonic() > end:
            break
        time.sleep(0.05)
    assert counted == answered
    assert sum(_by_route(samples, "reranker_request_seconds_count").values()) == CLIENTS * REQUESTS
    assert sum(value for key, value in samples.items() if key[0] == "reranker_rejections_total") == refused
    assert samples["reranker_requests_in_flight",] == 0
    assert samples["reranker_queue_pairs",] == 0
    assert samples["reranker_queue_limit_pairs",] == 8 * WORKERS
    assert not any(key[0] == "reranker_requests_total" and key[1] in ROUTES for key in before)
    access = _lines_when(server, sum(answered.values()), lambda line: line.get("route") in ROUTES)
    assert Counter(f"{line['route']} {line['status']}" for line in access) == answered
    assert len({line["request_id"] for line in access}) == len(access)
    assert {line["component"] for line in access} == {f"entry_service:Reranker:{number}" for number in range(1, WORKERS + 1)}


def _lines(server: Server) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log.splitlines() if line.strip()]


def _lines_when(server: Server, count: int, fits: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Find the lines that fit, once there are so many: a line is written when its answer has been sent."""
    end = time.monotonic() + 10
    while len(found := [line for line in _lines(server) if fits(line)]) < count and time.monotonic() < end:
        time.sleep(0.05)
    return found


def test_documents_are_counted_by_where_their_scores_came_from(server: Server) -> None:
    """All workers' hits, computed and shared pairs are what the answers' headers say together."""
    before = _samples(server)
    texts = [[f"word {start}", f"word {start + 1}"] for start in range(12)]
    headers = Counter[str]()
    with ThreadPoolExecutor(3) as pool:  # so few that the small queue holds them
        for answer in pool.map(lambda documents: server.post("/v2/rerank", query="r", documents=documents), texts * 2):
            assert answer.status_code == 200, answer.text
            headers.update({name: int(answer.headers[f"x-cache-{name}"]) for name in ("hits", "misses", "shared")})
    after = _samples(server)

    def more(name: str) -> float:
        return sum(value - before.get(key, 0.0) for key, value in after.items() if key[0] == name)

    assert more("reranker_documents_total") == sum(map(len, texts * 2)) == sum(headers.values())
    assert more("reranker_cache_hits_total") == headers["hits"]
    assert more("reranker_cache_misses_total") == headers["misses"]
    assert more("reranker_shared_pairs_total") == headers["shared"]


def test_each_process_of_the_server_is_measured(server: Server) -> None:
    """By its name, and each as psutil sees it from outside."""
    samples = _samples(server)
    names = {key[1] for key in samples if key[0] == "reranker_process_resident_bytes"}
    assert names == {*(f"entry-{number}" for number in range(1, WORKERS + 1)), "scorer-1", "parent"}
    [scorer] = server.workers("Scorer")
    assert samples["reranker_process_resident_bytes", "scorer-1"] == pytest.approx(scorer.memory_info().rss, rel=0.1)
    assert samples["reranker_process_cpu_seconds_total", "scorer-1"] > 1
    assert (samples["reranker_scorers_up",], samples["reranker_scorers",]) == (1, 1)


def test_a_traced_request_is_one_trace_through_entry_and_scorer(server: Server, receiver: TraceReceiver) -> None:
    """The caller's own, with a span for each stage inside BentoML's of the request; its Scorer calls are in it, too."""
    trace_id, parent = secrets.token_hex(16), secrets.token_hex(8)
    answer = httpx.post(
        f"{server.url}/rerank",
        json={"query": "trace", "documents": ["xyzzy one", "xyzzy two"]},
        headers={"traceparent": f"00-{trace_id}-{parent}-01"},
        timeout=60,
    )
    assert answer.status_code == 200
    stages = ["parse", "cache", "tokenize", "queue", "batch_wait", "forward", "rank"]
    wanted = {("Reranker", name) for name in [*stages, "score", "POST /rerank"]} | {("Scorer", "POST /score")}
    spans = receiver.trace_of(trace_id, spans=wanted)
    assert wanted <= {(span.service, span.name) for span in spans}
    [request] = [span for span in spans if span.name == "POST /rerank"]
    assert request.parent == parent
    times = {span.name: (span.begun, span.ended) for span in spans if span.parent == request.id and span.service == "Reranker"}
    for (_, ended), (begun, _) in itertools.pairwise(times[stage] for stage in stages):
        assert ended <= begun + 0.002
    assert all(request.begun - 0.01 <= begun <= ended <= request.ended + 0.01 for begun, ended in times.values())
    [call] = [span for span in spans if (span.service, span.name) == ("Scorer", "POST /score")]
    assert call.parent == request.id
    assert call.begun - 0.01 <= times["forward"][0] <= times["forward"][1] <= call.ended + 0.01
    assert "xyzzy" not in str(spans)
    seconds = {stage: ended - begun for stage, (begun, ended) in times.items()}
    told = {name: int(answer.headers[f"x-{name}-time"]) for name in ("queue", "tokenization", "inference", "total")}
    assert told["tokenization"] == pytest.approx(1000 * seconds["tokenize"], abs=3)
    assert told["queue"] == pytest.approx(1000 * (seconds["queue"] + seconds["batch_wait"]), abs=5)
    assert told["inference"] == pytest.approx(1000 * seconds["forward"], abs=1)
    assert told["total"] >= told["queue"] + told["tokenization"] + told["inference"] - 2
    assert _lines_when(server, 1, lambda line: line.get("route") == "/rerank" and line.get("trace_id") == trace_id)


def test_every_line_of_the_log_is_json_and_holds_no_text(server: Server) -> None:
    """The parent's, the workers' and BentoML's own; an id that the caller gave is on its line."""
    answer = httpx.post(
        f"{server.url}/rerank", json={"query": "plugh", "documents": ["plugh"]}, headers={"x-request-id": "mine-7"}, timeout=60
    )
    assert answer.headers["x-request-id"] == "mine-7"
    [line] = _lines_when(server, 1, lambda line: line.get("request_id") == "mine-7")
    assert (line["method"], line["route"], line["status"]) == ("POST", "/rerank", 200)
    assert {"cli", "entry_service:Reranker:1", "service:Scorer:1"} <= {line["component"] for line in _lines(server)}
    assert "plugh" not in server.log


def test_the_summary_reads_a_running_server(server: Server) -> None:
    """`make metrics` prints each of its parts."""
    script = [sys.executable, str(REPOSITORY / "load" / "performance.py"), "--url", server.url]
    done = subprocess.run(script, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    titles = {line[:14].strip() for line in done.stdout.splitlines()}
    assert {"status", "requests", "/rerank", "forward", "queue", "cache", "batches", "memory", "GPU"} <= titles
