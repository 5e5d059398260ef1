"""Measures what docs/claims.md answers with and no other report has: `make claims`, about eight minutes.

Real servers of the MiniLM-L6 cross-encoder shape with random weights in bf16, one asked at a time, in turns: as they come, without
micro-batching, with one request at a time, and with Redis alone as their cache. Beside them, in processes of their own: the memory of
one big call cut into forward passes and whole, and tokenising document by document and at once. Machines are shared: ratios count.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests"), str(REPOSITORY / "load")]

from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from claims_alone import MODES  # noqa: E402  the path must be set first
from claims_page import PAGE, filled  # noqa: E402
from claims_report import markdown  # noqa: E402
from cores import Meter  # noqa: E402
from loops import Bodies, Endpoint, Window, closed_loop, open_loop, percentile  # noqa: E402
from provenance import provenance, versions  # noqa: E402
from redis_servers import RedisServer  # noqa: E402
from report_options import REPORTS, command_line  # noqa: E402
from servers import Server  # noqa: E402
from shapes import make_source  # noqa: E402

NAME, PRECISION = "claims-minilm-l6", "bf16"
AS_IT_COMES, REDIS_ALONE = "as it comes", "REDIS_ENABLED=true, ENABLE_PREDICTION_CACHE=false"
SETTINGS: dict[str, dict[str, str]] = {
    AS_IT_COMES: {},
    "MICRO_BATCH_ENABLED=false": {"MICRO_BATCH_ENABLED": "false"},
    "RERANKER_MAX_PARALLEL=1": {"RERANKER_MAX_PARALLEL": "1"},
}
# Clients and documents a request; of the open loop, requests a second and documents.
CLOSED = {"24 clients x 2 documents": (24, 2), "8 clients x 20 documents": (8, 20), "1 client x 2 documents": (1, 2)}
OPEN = {"12 requests/s x 2 documents": (12.0, 2)}
KNOWN_DOCUMENTS, KNOWN_REQUESTS, KNOWN_TIMES = 50, 15, 8
REPEATED_QUERIES, REPEATS, REPEATED_DOCUMENTS = 40, 10, 10
PROBE_SECONDS = 0.01


def figures(server: Server) -> dict[str, float]:
    """Read what the server has counted so far, labels but one value left out."""
    counted: dict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(server.get("/metrics").text):
        for sample in family.samples:
            counted[sample.name] += sample.value
            for value in sample.labels.values():
                counted[f"{sample.name} {value}"] += sample.value
    return counted


def under(server: Server, ask: Callable[[], Window]) -> dict[str, Any]:
    """Ask, and tell what the callers and the server saw meanwhile."""
    before, meter = figures(server), Meter([server.process.pid])
    window = ask()
    _, others = meter.read()
    after = figures(server)
    if window.failures:
        raise SystemExit(f"{len(window.failures)} requests failed, the first: {window.failures[0]}")

    def grown(name: str) -> float:
        return after[name] - before[name]

    pairs = grown("reranker_pairs_total scored")
    return {
        "requests_per_second": window.requests_per_second,
        "latencies_ms": [round(1000 * latency, 2) for latency in window.latencies],
        "pairs_in_a_batch": grown("reranker_batch_pairs_sum") / max(1.0, grown("reranker_batch_pairs_count")),
        "forwards_for_100_pairs": 100 * grown("reranker_forwards_total") / max(1.0, pairs),
        "wait_seconds": grown("reranker_stage_seconds_sum queue") / max(1.0, grown("reranker_stage_seconds_count queue")),
        "other_cores": round(others, 2),
    }


def batching(servers: dict[str, Server], seconds: float, seed: int) -> list[dict[str, Any]]:
    """One round: each load on each server."""
    rows = []
    for place, (load, (clients, documents)) in enumerate(CLOSED.items()):
        for name, server in servers.items():
            bodies = Bodies(seed + place, documents, int(seconds * 150))
            told = under(
                server, lambda s=server, b=bodies, c=clients: closed_loop(Endpoint(s.port), b, clients=c, seconds=seconds)
            )
            rows.append({"server": name, "load": load, "documents": documents, **told})
    for load, (rate, documents) in OPEN.items():
        for name, server in servers.items():
            bodies = Bodies(seed + 50, documents, int(seconds * rate * 2))
            told = under(
                server,
                lambda s=server, b=bodies, r=rate: open_loop(
                    Endpoint(s.port), b, requests_per_second=r, seconds=seconds, seed=seed
                ),
            )
            rows.append({"server": name, "load": load, "documents": documents, **told})
    return rows


def sent(port: int, bodies: list[bytes]) -> Window:
    """Send them one after the other on one connection."""
    window, connection = Window(), http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for body in bodies:
        window.send(connection, Endpoint(port).path, body, window.age)
    connection.close()
    if window.failures:
        raise SystemExit(f"{len(window.failures)} requests failed, the first: {window.failures[0]}")
    return window


def known(server: Server, seed: int) -> dict[str, float]:
    """p50 of requests whose 50 documents are new, and of the same ones again."""
    texts = Bodies(seed, KNOWN_DOCUMENTS, KNOWN_REQUESTS)
    bodies = [texts.take() for _ in range(KNOWN_REQUESTS)]
    new, again = sent(server.port, bodies), sent(server.port, bodies * KNOWN_TIMES)
    if again.cached != KNOWN_DOCUMENTS * len(bodies) * KNOWN_TIMES:
        raise SystemExit(f"only {again.cached} of the known documents came from a cache")
    return {"new_ms": 1000 * statistics.median(new.latencies), "known_ms": 1000 * statistics.median(again.latencies)}


def repeated(server: Server, seed: int) -> dict[str, float]:
    """Documents that came from the cache where each query is sent ten times, in random order; and how many of them were repeats."""
    texts = Bodies(seed, REPEATED_DOCUMENTS, REPEATED_QUERIES)
    bodies = [texts.take() for _ in range(REPEATED_QUERIES)] * REPEATS
    random.Random(seed).shuffle(bodies)
    window = sent(server.port, bodies)
    repeats = (REPEATS - 1) * REPEATED_QUERIES * REPEATED_DOCUMENTS
    return {"hit_ratio": window.cached / (len(bodies) * REPEATED_DOCUMENTS), "hits_of_repeats": window.cached / repeats}


def event_loop(server: Server, seconds: float, seed: int) -> dict[str, dict[str, float]]:
    """How long a request that needs no work waits for the entry worker, idle and beside 8 clients x 20 new documents."""
    idle = _probe(server, lambda: time.sleep(seconds))
    clients, documents = CLOSED["8 clients x 20 documents"]
    bodies = Bodies(seed, documents, int(seconds * 20))
    busy = _probe(server, lambda: closed_loop(Endpoint(server.port), bodies, clients=clients, seconds=seconds))
    return {
        name: {"p50_ms": percentile(all_ms, 0.5), "p99_ms": percentile(all_ms, 0.99)}
        for name, all_ms in (("idle", idle), ("busy", busy))
    }


def _probe(server: Server, work: Callable[[], Any]) -> list[float]:
    """Ask for /v1/models every 10 ms until the work is done; each answer's milliseconds."""
    spent, over = [], threading.Event()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)

    def ask() -> None:
        while not over.wait(PROBE_SECONDS):
            begin = time.perf_counter()
            connection.request("GET", "/v1/models")
            connection.getresponse().read()
            spent.append(1000 * (time.perf_counter() - begin))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        work()
    finally:
        over.set()
        thread.join()
        connection.close()
    return spent


def resident(server: Server) -> dict[str, int]:
    """Bytes that the entry worker and the model worker hold."""
    return {name: server.workers(name)[0].memory_info().rss for name in ("Reranker", "Scorer")}


def alone(mode: str, home: Path, seed: int) -> dict[str, float]:
    """Run one measurement of claims_alone in a process of its own, with a Scorer's environment."""
    from bento_service.settings import scorer_environment

    command = [sys.executable, str(REPOSITORY / "load" / "claims_alone.py"), mode, str(seed)]
    environment = {
        **os.environ,
        **scorer_environment(),
        "BENTOML_HOME": str(home),
        "QUANTIZATION": PRECISION,
        "RERANKER_MODEL": NAME,
    }
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=environment)
    return json.loads(ran.stdout.splitlines()[-1])


@contextlib.contextmanager
def running(home: Path) -> Iterator[tuple[dict[str, Server], Server]]:
    """Save the model and start the servers; the one with Redis apart."""
    from model_store_scripts.save_model import save_model

    save_model(str(make_source(home)), quantization=PRECISION, name=NAME)
    common = {"RERANKER_MODEL": NAME, "QUANTIZATION": PRECISION, "CACHE_TTL_SECONDS": "86400"}
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(Server(home, **common, **own)) for name, own in SETTINGS.items()}
        redis = stack.enter_context(RedisServer())
        shared = {"REDIS_ENABLED": "true", "REDIS_URL": redis.url, "ENABLE_PREDICTION_CACHE": "false"}
        yield servers, stack.enter_context(Server(home, **common, **shared))


def measure(rounds: int, seconds: float) -> dict[str, Any]:
    """Everything, round by round."""
    home = Path(tempfile.mkdtemp(prefix="reranker-claims-"))
    os.environ["BENTOML_HOME"] = str(home)
    kinds = ("batching", "known", "repeated", "event_loop", *MODES)
    raw: dict[str, list[Any]] = {kind: [] for kind in kinds}
    try:
        with running(home) as (servers, with_redis):
            for server in (*servers.values(), with_redis):
                closed_loop(Endpoint(server.port), Bodies(1, 20, 40), clients=4, seconds=3)
            first = servers[AS_IT_COMES]
            for turn in range(rounds):
                seed = 1000 * (turn + 1)
                raw["batching"].append(batching(servers, seconds, seed))
                raw["known"].append({"process": known(first, seed + 200), "redis": known(with_redis, seed + 300)})
                raw["repeated"].append(repeated(first, seed + 400))
                raw["event_loop"].append(event_loop(first, seconds, seed + 500))
                print(json.dumps({"round": turn, **{kind: raw[kind][-1] for kind in kinds[1:4]}}), flush=True)
            memory = {name: resident(server) for name, server in {**servers, REDIS_ALONE: with_redis}.items()}
        for turn in range(rounds):
            for mode in MODES:
                raw[mode].append(alone(mode, home, turn))
                print(json.dumps({"round": turn, mode: raw[mode][-1]}), flush=True)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return {"rounds": rounds, "seconds": seconds, "precision": PRECISION, "raw": raw, "resident_bytes": memory}


def main() -> None:
    """Measure, and write the report and its raw figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each load")
    parser.add_argument(
        "--reports",
        type=Path,
        default=REPORTS,
        help="folder that the report goes to; docs/claims.md gets its figures by default only",
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers end with this process
    told = provenance(command_line("claims", sys.argv[1:]))
    result = {
        "provenance": told,
        "versions": versions(Path(sys.executable), ("bentoml", "torch", "transformers", "tokenizers")),
        **measure(options.rounds, options.seconds),
    }
    options.reports.mkdir(parents=True, exist_ok=True)
    (options.reports / "claims.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (options.reports / "claims.md").write_text(markdown(result), encoding="utf-8")
    if options.reports == REPORTS:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), result), encoding="utf-8")
    print(f"wrote {options.reports / 'claims.md'}")


if __name__ == "__main__":
    main()
