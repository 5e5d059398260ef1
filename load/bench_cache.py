"""Cached answers beside the bare BentoML API, and Redis memory for a pair, in one run: `make bench-cache`.

One client on a kept-alive connection sends 50 documents of 540 characters, all cached, to three servers in turn: one that
answers from its own memory, one that answers from Redis (ENABLE_PREDICTION_CACHE=false), and a BentoML API of a few lines that
answers as much without any work. Then 8 client processes ask one entry worker for all it can give. Memory is what Redis says
it holds after 1,000 queries x 50 documents were claimed and settled as the service does. Machines are shared: compare ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import multiprocessing
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests"), str(REPOSITORY / "load")]

from bento_service.metrics import EntryMetrics  # noqa: E402  the path must be set first
from redis_servers import RedisServer  # noqa: E402
from servers import Server  # noqa: E402
from texts import Texts  # noqa: E402

DOCUMENTS, CHARACTERS, CLIENTS = 50, 540, 8
# Without the documents in the answer, and with them.
PATHS = ("/v2/rerank", "/rerank")
LONG_SECONDS = 86_400  # nothing expires while it is measured
CONNECT_SECONDS = 0.5  # all client processes have connected before they begin
JSON = {"content-type": "application/json"}
PROCESS_MS, REDIS_MS, PROCESS_OVER_BARE, REDIS_OVER_BARE, BYTES_A_PAIR = 2.5, 4.0, 2.5, 4.0, 80
# BentoML as it comes: its own metrics and access log are on, as ours are.
BARE = '''
"""A BentoML API that answers as much as the reranker does, and does nothing for it."""

import time
import uuid
from typing import Any

import bentoml

SCORES = [0.5 + 0.4814570304006338 / (place + 2) for place in range(1000)]


def _answer(results: list[dict[str, Any]]) -> dict[str, Any]:
    tokens = 107 * len(results)
    return {
        "id": f"rerank-{uuid.uuid4()}",
        "object": "rerank",
        "created": int(time.time()),
        "model": "all-minilm-l6-v2:940136232dfb6048",
        "results": results,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "meta": {
            "api_version": {"version": "2"},
            "billed_units": {"search_units": 1},
            "tokens": {"input_tokens": tokens, "output_tokens": 0},
            "cached_documents": len(results),
            "truncated_documents": [],
            "warnings": [],
        },
        "took_ms": 1.25,
    }


@bentoml.service(workers=1)
class Bare:
    @bentoml.api(route="/v2/rerank")
    async def rerank(self, query: str, documents: list[str]) -> dict[str, Any]:
        return _answer([{"index": place, "relevance_score": SCORES[place]} for place in range(len(documents))])

    @bentoml.api(route="/rerank")
    async def rerank_with_documents(self, query: str, documents: list[str]) -> dict[str, Any]:
        return _answer(
            [
                {
                    "index": place,
                    "relevance_score": SCORES[place],
                    "score": SCORES[place],
                    "rank": place + 1,
                    "document": {"text": text},
                }
                for place, text in enumerate(documents)
            ]
        )
'''


def bodies(count: int, seed: int) -> list[bytes]:
    """Make requests of 50 documents with 540 characters each."""
    texts = Texts(seed)

    def document() -> str:
        text = texts.document()
        while len(text) < CHARACTERS:
            text += " " + texts.document()
        return text[:CHARACTERS]

    return [
        json.dumps({"query": texts.query(), "documents": [document() for _ in range(DOCUMENTS)]}).encode() for _ in range(count)
    ]


class Client:
    """One kept-alive connection, for a while: BentoML closes one that was idle for 5 s. hits: what `x-cache-hits` must say; None where nothing is cached."""

    def __init__(self, port: int, hits: str | None) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self._hits = hits
        self._connection.connect()

    def post(self, path: str, body: bytes, *, check: bool = True) -> tuple[float, int]:
        """Send a body; milliseconds until its answer was read, and the answer's bytes. check: the answer must be a cached one."""
        start = time.perf_counter()
        self._connection.request("POST", path, body, JSON)
        response = self._connection.getresponse()
        answer = response.read()
        spent = 1000 * (time.perf_counter() - start)
        if response.status != http.client.OK:
            raise SystemExit(f"a request failed: {response.status}: {answer[:200]!r}")
        if check and response.getheader("x-cache-hits") != self._hits:
            raise SystemExit(f"x-cache-hits is {response.getheader('x-cache-hits')} and not {self._hits}")
        return spent, len(answer)

    def get(self, path: str) -> int:
        """Read a page; its bytes."""
        self._connection.request("GET", path)
        return len(self._connection.getresponse().read())


def count_until(task: tuple[int, str | None, str, list[bytes], float, float]) -> int:
    """Count one client's answers between two times on the clock of time.monotonic(), in a process of its own."""
    port, hits, path, sent, begin, end = task
    client, count = Client(port, hits), 0
    time.sleep(max(0.0, begin - time.monotonic()))
    while time.monotonic() < end:
        client.post(path, sent[count % len(sent)])
        count += time.monotonic() <= end
    return count


class Targets:
    """The three servers, by name: bare, process, redis."""

    def __init__(self, ports: dict[str, int], sent: list[bytes], pool: Pool) -> None:
        self._ports = ports
        self._sent = sent
        self._pool = pool

    @staticmethod
    def _hits(name: str) -> str | None:
        return None if name == "bare" else str(DOCUMENTS)

    def warm_up(self) -> dict[str, dict[str, int]]:
        """Send every body once, so that all are cached; the bytes of an answer by path and server."""
        for name, port in self._ports.items():
            client = Client(port, self._hits(name))
            for body in self._sent:
                client.post(PATHS[0], body, check=False)
        return {
            path: {name: Client(port, self._hits(name)).post(path, self._sent[0])[1] for name, port in self._ports.items()}
            for path in PATHS
        }

    def latencies(self, requests: int) -> dict[str, dict[str, list[float]]]:
        """Milliseconds of one client's requests, by path and server."""
        return {path: {name: self._latencies(name, path, requests) for name in self._ports} for path in PATHS}

    def _latencies(self, name: str, path: str, requests: int) -> list[float]:
        client = Client(self._ports[name], self._hits(name))
        client.post(path, self._sent[0])  # not counted: the first one on a connection
        return [client.post(path, self._sent[number % len(self._sent)])[0] for number in range(requests)]

    def rates(self, seconds: float) -> dict[str, dict[str, float]]:
        """Requests a second that 8 client processes get from one entry worker, by path and server."""
        return {path: {name: self._rate(name, path, seconds) for name in self._ports} for path in PATHS}

    def _rate(self, name: str, path: str, seconds: float) -> float:
        begin = time.monotonic() + CONNECT_SECONDS
        task = (self._ports[name], self._hits(name), path, self._sent, begin, begin + seconds)
        return sum(self._pool.map(count_until, [task] * CLIENTS, chunksize=1)) / seconds


@contextlib.contextmanager
def running(home: Path, count: int) -> Iterator[Targets]:
    """Start the three servers, a Redis and the client processes."""
    from model_store_scripts.save_model import save_model

    save_model("builtin")
    bare = home / "bare"
    bare.mkdir()
    (bare / "bare.py").write_text(BARE, encoding="utf-8")
    long = {"CACHE_TTL_SECONDS": LONG_SECONDS, "REDIS_TTL_SECONDS": LONG_SECONDS}
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        shared = {"ENABLE_PREDICTION_CACHE": "false", "REDIS_ENABLED": "true", "REDIS_URL": redis.url}
        servers = {
            "bare": stack.enter_context(Server(home, bento="bare:Bare", cwd=bare)),
            "process": stack.enter_context(Server(home, **long)),
            "redis": stack.enter_context(Server(home, **long, **shared)),
        }
        pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(CLIENTS))
        ports = {name: server.port for name, server in servers.items()}
        yield Targets(ports, bodies(count, seed=0), pool)


async def fill(server: RedisServer, queries: int, metrics: EntryMetrics) -> dict[str, object]:
    """Let the service's own SharedCache claim and settle so many queries x 50 documents; what Redis holds for a pair then."""
    from bento_service.cache.connection import Connection
    from bento_service.cache.keys import DIGEST_BYTES, PairKeys
    from bento_service.cache.shared import SharedCache
    from bento_service.pairs import KnownScore
    from bento_service.redis_url import parse_redis_url

    drawn = random.Random(0)
    fingerprint = drawn.randbytes(32).hex()
    shared = SharedCache(Connection(parse_redis_url(server.url), timeout_seconds=5), ttl_seconds=600, metrics=metrics)

    async def settle() -> PairKeys:
        pairs = tuple(drawn.randbytes(DIGEST_BYTES) for _ in range(DOCUMENTS))
        keys = PairKeys(fingerprint, drawn.randbytes(DIGEST_BYTES), pairs, under=lambda _: keys)
        token = shared.new_token()
        claim = await shared.claim(keys, range(DOCUMENTS), token, most_age_seconds=60)
        known = {
            pairs[place]: KnownScore(drawn.uniform(-0.2, 0.9), drawn.randint(20, 256), truncated=False) for place in claim.owned
        }
        await shared.settle(keys, known, pairs, token)
        return keys

    try:
        await shared.probe()
        await settle()  # the scripts and the connection's buffers are there from now on
        before = server.used_memory()
        stored = [await settle() for _ in range(queries)]
        after = server.used_memory()
        for keys in drawn.sample(stored, min(20, queries)):
            claim = await shared.claim(keys, range(DOCUMENTS), shared.new_token(), most_age_seconds=60)
            if len(claim.known) != DOCUMENTS:
                raise SystemExit(f"only {len(claim.known)} of {DOCUMENTS} pairs are in Redis")
    finally:
        await shared.close()
    return {
        "redis": redis_name(server),
        "used_memory_before": before,
        "used_memory_after": after,
        "pairs": queries * DOCUMENTS,
        "bytes_per_pair": round((after - before) / (queries * DOCUMENTS), 1),
    }


def redis_name(server: RedisServer) -> str:
    """Say which Redis it is: version and memory allocator, which decides on the bytes."""
    with server.client() as client:
        return f"{client.info('server')['redis_version']} ({client.info('memory')['mem_allocator']})"


def memory(queries: int, other: str | None) -> list[dict[str, object]]:
    """Measure a pair's bytes on the tests' Redis and, if one is named, on another."""
    figures = []
    metrics = EntryMetrics()  # once: prometheus_client refuses a second set
    for binary in (None, other) if other else (None,):
        before = os.environ.get("REDIS_SERVER")
        if binary:
            os.environ["REDIS_SERVER"] = binary
        try:
            with RedisServer() as server:
                figures.append(asyncio.run(fill(server, queries, metrics)))
        finally:
            if binary:
                os.environ.pop("REDIS_SERVER")
            if binary and before:
                os.environ["REDIS_SERVER"] = before
        print(json.dumps({"memory": figures[-1]}), flush=True)
    return figures


def percentile(values: list[float], share: float) -> float:
    """Find the value that so large a share of the values is below."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def over_bare(rounds: list[dict[str, dict[str, float]]], path: str, name: str) -> float:
    """Take the median over the rounds of a server's figure over the bare one of the same round."""
    return round(statistics.median(turn[path][name] / turn[path]["bare"] for turn in rounds), 2)


def run(options: argparse.Namespace) -> dict[str, object]:
    """Alternate the servers round by round, then fill Redis."""
    home = Path(tempfile.mkdtemp(prefix="reranker-bench-"))
    os.environ["BENTOML_HOME"] = str(home)
    raw: list[dict[str, dict[str, list[float]]]] = []
    rates: list[dict[str, dict[str, float]]] = []
    try:
        with running(home, options.bodies) as targets:
            answer_bytes = targets.warm_up()
            targets.latencies(min(50, options.requests))
            for turn in range(options.rounds):
                raw.append(targets.latencies(options.requests))
                rates.append(targets.rates(options.seconds))
                p50 = {path: {name: round(statistics.median(ms), 3) for name, ms in raw[-1][path].items()} for path in PATHS}
                print(json.dumps({"round": turn, "p50_ms": p50, "requests_per_second": rates[-1]}), flush=True)
        used = memory(options.queries, options.redis_server)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    machine = {"cpus": os.cpu_count(), "python": platform.python_version()}
    return {
        "machine": machine,
        "answer_bytes": answer_bytes,
        **summary(raw, rates),
        "redis_memory": used,
        **targets_of(raw, used),
    }


def summary(raw: list[dict[str, dict[str, list[float]]]], rates: list[dict[str, dict[str, float]]]) -> dict[str, object]:
    """All rounds together, and the medians of the rounds' ratios to the bare API."""
    medians = [{path: {name: statistics.median(ms) for name, ms in turn[path].items()} for path in PATHS} for turn in raw]
    result: dict[str, Any] = {"latency": {}, "requests_per_second": {}}
    for path in PATHS:
        result["latency"][path], result["requests_per_second"][path] = {}, {}
        for name in raw[0][path]:
            every = [ms for turn in raw for ms in turn[path][name]]
            result["latency"][path][name] = {
                "p50_ms": round(percentile(every, 0.5), 2),
                "p99_ms": round(percentile(every, 0.99), 2),
                "p50_over_bare": over_bare(medians, path, name),
            }
            result["requests_per_second"][path][name] = {
                "median": round(statistics.median(turn[path][name] for turn in rates), 1),
                "over_bare": over_bare(rates, path, name),
            }
    return result


def targets_of(raw: list[dict[str, dict[str, list[float]]]], used: list[dict[str, Any]]) -> dict[str, object]:
    """What was aimed at, beside what came out."""
    p50 = {name: percentile([ms for turn in raw for ms in turn[PATHS[0]][name]], 0.5) for name in raw[0][PATHS[0]]}
    wanted = [
        ("process p50_ms", p50["process"], max(PROCESS_MS, PROCESS_OVER_BARE * p50["bare"])),
        ("redis p50_ms", p50["redis"], max(REDIS_MS, REDIS_OVER_BARE * p50["bare"])),
        *((f"bytes per pair, Redis {each['redis']}", each["bytes_per_pair"], BYTES_A_PAIR) for each in used),
    ]
    return {
        "targets": [
            {"what": what, "figure": round(figure, 2), "at_most": round(limit, 2), "met": figure <= limit}
            for what, figure, limit in wanted
        ]
    }


def main() -> None:
    """Parse the command line and print one JSON object a line, the summary last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=500, help="of one client to each server and path in a round")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement of requests a second")
    parser.add_argument("--bodies", type=int, default=10, help="different requests that are cached and sent in turn")
    parser.add_argument("--queries", type=int, default=1000, help="stored for the memory of a pair, 50 documents each")
    parser.add_argument("--redis-server", help="another redis-server whose memory is measured too: a path, or a name on PATH")
    print(json.dumps(run(parser.parse_args())))


if __name__ == "__main__":
    main()
