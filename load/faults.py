"""Redis dies, hangs and refuses writes under load: `make cache-faults`.

8 clients x 10 documents, half of the requests exact repeats, against a server with Redis; before and after that, the same load on a
server without any cache, whose p99 is the measure. In each phase Redis is hurt for some seconds under load and comes back:
killed (and back empty), paused, read-only, restarted empty at once. Counted are failed requests, latencies, the seconds until Redis
gives its first score again and until the server under load uses it again, and whether the answers are those of `Cache-Control:
no-store`. Who asks for that first score is a second server on the same Redis that has no memory of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import os
import platform
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests"), str(REPOSITORY / "load")]

from prometheus_client.parser import text_string_to_metric_families  # noqa: E402  the path must be set first

from redis_servers import RedisServer  # noqa: E402
from servers import Server, free_port  # noqa: E402
from texts import Texts  # noqa: E402

CLIENTS, DOCUMENTS = 8, 10
BODIES = 400  # new requests of a phase; more are repeats
LEAD_SECONDS = 2.0  # of load before Redis is hurt, not counted
POLL_SECONDS = 0.2
P99_OVER_UNCACHED, MOST_DIFFERENCE, MOST_RETURN_SECONDS = 1.5, 1e-5, 10.0
JSON = {"content-type": "application/json"}
Scores = dict[int, float]


@dataclass(frozen=True)
class Answered:
    """One answered request."""

    body: bytes
    start: float
    seconds: float
    scores: Scores
    hits: int


@dataclass
class Seen:
    """What a load saw."""

    answered: list[Answered] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def post(connection: http.client.HTTPConnection, body: bytes, **headers: str) -> tuple[Scores, int]:
    """Send a body; scores by index, and how many were cached. Raises RuntimeError for any other answer than 200."""
    connection.request("POST", "/v2/rerank", body, JSON | headers)
    response = connection.getresponse()
    answer = response.read()
    if response.status != http.client.OK:
        raise RuntimeError(f"{response.status}: {answer[:200]!r}")
    scores = {result["index"]: result["relevance_score"] for result in json.loads(answer)["results"]}
    return scores, int(response.getheader("x-cache-hits", "0"))


class Load:
    """Closed loop, in the background while the `with` lasts: each client sends its next request when it has its answer."""

    def __init__(self, port: int, *, repeat: float, seed: int) -> None:
        self.seen = Seen()
        self._port = port
        self._repeat = repeat
        self._seed = seed
        texts = Texts(seed)
        self._bodies = iter([self._body(*texts.request(DOCUMENTS)) for _ in range(BODIES)])
        self._sent: list[bytes] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(number,)) for number in range(CLIENTS)]

    @staticmethod
    def _body(query: str, documents: list[str]) -> bytes:
        return json.dumps({"query": query, "documents": documents}).encode()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _next(self, drawn: random.Random) -> bytes:
        with self._lock:
            if not self._sent or drawn.random() >= self._repeat:
                new = next(self._bodies, None)
                if new is not None:
                    self._sent.append(new)
                    return new
            return drawn.choice(self._sent)

    def _client(self, number: int) -> None:
        drawn = random.Random(1000 * self._seed + number)
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        while not self._over.is_set():
            body = self._next(drawn)
            start = time.perf_counter()
            try:
                scores, hits = post(connection, body)
            except (OSError, http.client.HTTPException, RuntimeError) as error:
                connection.close()
                with self._lock:
                    self.seen.failures.append(f"{type(error).__name__}: {error}")
                continue
            with self._lock:
                self.seen.answered.append(Answered(body, start, time.perf_counter() - start, scores, hits))
        connection.close()


def seconds_of(seen: Seen, since: float) -> list[float]:
    """List how long the requests took that began after a time on the clock of time.perf_counter()."""
    return [each.seconds for each in seen.answered if each.start >= since]


def latencies(seconds: list[float]) -> dict[str, Any]:
    """Count requests; median and 99th percentile."""
    ordered = sorted(seconds) or [float("nan")]
    p50, p99 = ordered[len(ordered) // 2], ordered[int(0.99 * len(ordered))]
    return {"requests": len(seconds), "p50_ms": round(1000 * p50, 1), "p99_ms": round(1000 * p99, 1)}


def greatest_difference(port: int, seen: Seen, sample: int) -> float:
    """Send some requests again, half of them answered from a cache, to be computed anew; how far the scores are from those seen."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    greatest = 0.0
    drawn = random.Random(0)
    cached = [answered for answered in seen.answered if answered.hits]
    samples = [drawn.sample(answers, min(sample // 2, len(answers))) for answers in (cached, seen.answered)]
    for answered in itertools.chain(*samples):
        scores, hits = post(connection, answered.body, **{"cache-control": "no-store"})
        if hits or scores.keys() != answered.scores.keys():
            return float("inf")
        greatest = max(greatest, *(abs(score - answered.scores[index]) for index, score in scores.items()))
    connection.close()
    return greatest


def metric(server: Server, name: str, label: str) -> dict[str, int]:
    """Read a metric of all entry workers together, by one of its labels."""
    totals: Counter[str] = Counter()
    for family in text_string_to_metric_families(server.get("/metrics").text):
        for sample in family.samples:
            if sample.name == name:
                totals[sample.labels[label]] += int(sample.value)
    return dict(totals)


def is_in_use(server: Server) -> bool:
    """Tell whether Redis is asked by every entry worker, and takes their writes."""
    return all(count == (state == "closed") for state, count in metric(server, "reranker_redis_state", "state").items())


class Observer:
    """Asks a server that remembers nothing itself for one short pair until its score comes from Redis."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._numbers = iter(range(10**9))

    def _hits(self) -> int:
        return metric(self._server, "reranker_cache_hits_total", "tier").get("redis", 0)

    def seconds_to_a_hit(self, at_most_seconds: float, seen: Seen) -> float | None:
        """Wait for the first hit from Redis of a pair that was never asked for before; None if it does not come. seen: takes failures."""
        begin = time.perf_counter()
        before = self._hits()
        body = json.dumps({"query": f"query {next(self._numbers)}", "documents": ["a short document"]}).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=120)
        while time.perf_counter() - begin < at_most_seconds:
            try:
                post(connection, body)  # the first one that Redis takes is what the next one finds
            except (OSError, http.client.HTTPException, RuntimeError) as error:
                connection.close()
                seen.failures.append(f"observer: {type(error).__name__}: {error}")
            if self._hits() > before:
                connection.close()
                return time.perf_counter() - begin
            time.sleep(POLL_SECONDS)
        connection.close()
        return None


@dataclass(frozen=True)
class Fault:
    """What is done to Redis, and how it comes back. at_once: it is back before anybody could have waited."""

    name: str
    hurt: Callable[[RedisServer], object]
    heal: Callable[[RedisServer], object]
    at_once: bool = False


def _follow(server: RedisServer, *master: object) -> None:
    with server.client() as client:
        client.execute_command("REPLICAOF", *master)


FAULTS = (
    Fault("killed, then back empty", RedisServer.kill, RedisServer.restart),
    Fault("paused", RedisServer.pause, RedisServer.resume),
    Fault(
        "read-only",
        lambda server: _follow(server, "127.0.0.1", free_port()),  # a replica of nobody
        lambda server: _follow(server, "NO", "ONE"),
    ),
    Fault("restarted empty", RedisServer.restart, lambda _: None, at_once=True),
)


class Trial:
    """The servers, and the phases on them."""

    def __init__(self, servers: dict[str, Server], redis: RedisServer, options: argparse.Namespace) -> None:
        self._servers = servers
        self._redis = redis
        self._observer = Observer(servers["observer"])
        self._options = options
        self._seeds = iter(range(options.seed, 10**9))

    def _load(self, server: Server) -> Load:
        return Load(server.port, repeat=self._options.repeat, seed=next(self._seeds))

    def quiet(self, name: str, server: str) -> tuple[dict[str, Any], list[float]]:
        """Load a server while nothing happens to Redis; the report, and the seconds of each request."""
        with self._load(self._servers[server]) as load:
            time.sleep(min(LEAD_SECONDS, self._options.seconds))
            since = time.perf_counter()
            time.sleep(self._options.seconds)
        return self._report(name, server, load.seen, since, {}), seconds_of(load.seen, since)

    def fault(self, fault: Fault) -> dict[str, Any]:
        """Hurt Redis under load, heal it, and go on until its first hit and for a while after."""
        server = self._servers["cached"]
        errors = Counter(metric(server, "reranker_redis_errors_total", "kind"))
        with self._load(server) as load:
            time.sleep(min(LEAD_SECONDS, self._options.seconds))
            since = time.perf_counter()
            fault.hurt(self._redis)
            if not fault.at_once:
                time.sleep(self._options.seconds)
            fault.heal(self._redis)
            healed = time.perf_counter()
            waited = self._observer.seconds_to_a_hit(3 * MOST_RETURN_SECONDS, load.seen)
            while not is_in_use(server) and time.perf_counter() - healed < 3 * MOST_RETURN_SECONDS:
                time.sleep(POLL_SECONDS)
            in_use = time.perf_counter() - healed
            wanted = self._options.seconds if fault.at_once else self._options.recovery
            time.sleep(max(0.0, healed + wanted - time.perf_counter()))
        kinds = dict(Counter(metric(server, "reranker_redis_errors_total", "kind")) - errors)
        returned = {
            "seconds_to_first_redis_hit": None if waited is None else round(waited, 2),
            "seconds_until_in_use_under_load": round(in_use, 2),
            "at_most_seconds": MOST_RETURN_SECONDS,
        }
        report = self._report(fault.name, "cached", load.seen, since, {**returned, "redis_errors": kinds})
        report["met"]["redis_back"] = waited is not None and max(waited, in_use) <= MOST_RETURN_SECONDS
        return report

    def _report(self, name: str, server: str, seen: Seen, since: float, more: dict[str, object]) -> dict[str, Any]:
        difference = greatest_difference(self._servers[server].port, seen, self._options.sample)
        met = {"no_failure": not seen.failures, "same_scores": difference <= MOST_DIFFERENCE}
        return {
            "phase": name,
            **latencies(seconds_of(seen, since)),
            "failed": len(seen.failures),
            **({"first_failure": seen.failures[0]} if seen.failures else {}),
            "cached_share": round(sum(each.hits for each in seen.answered) / max(1, DOCUMENTS * len(seen.answered)), 3),
            "greatest_difference": difference,
            **more,
            "met": met,
        }


@contextlib.contextmanager
def running(home: Path, redis_only: bool) -> Iterator[tuple[dict[str, Server], RedisServer]]:
    """Start Redis, and one server after the other: without a cache, with both tiers, and one that knows only what Redis knows."""
    from model_store_scripts.save_model import save_model

    save_model("builtin")
    off = {"ENABLE_PREDICTION_CACHE": "false"}
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        shared = {"REDIS_ENABLED": "true", "REDIS_URL": redis.url}
        settings: dict[str, dict[str, str]] = {
            "uncached": off | {"REDIS_ENABLED": "false"},
            "cached": shared | (off if redis_only else {}),
            "observer": shared | off,
        }
        yield {name: stack.enter_context(Server(home, **each)) for name, each in settings.items()}, redis


def run(options: argparse.Namespace) -> dict[str, object]:
    """Go through the phases; the p99 without a cache is that of the phases before and after them together."""
    home = Path(tempfile.mkdtemp(prefix="reranker-faults-"))
    os.environ["BENTOML_HOME"] = str(home)
    phases: list[dict[str, Any]] = []

    def note(phase: dict[str, Any]) -> None:
        phases.append(phase)
        print(json.dumps(phase), flush=True)

    try:
        with running(home, options.redis_only) as (servers, redis):
            trial = Trial(servers, redis, options)
            first, seconds = trial.quiet("without a cache", "uncached")
            note(first)
            note(trial.quiet("with a cache", "cached")[0])
            for fault in FAULTS:
                if options.only is None or fault.name.startswith(options.only):
                    note(trial.fault(fault))
            last, more = trial.quiet("without a cache, at the end", "uncached")
            note(last)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    uncached = latencies(seconds + more)
    return {
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version()},
        "redis_only": options.redis_only,
        "uncached": uncached,
        "p99_over_uncached_at_most": P99_OVER_UNCACHED,
        "phases": {phase["phase"]: judged(phase, uncached["p99_ms"]) for phase in phases},
    }


def judged(phase: dict[str, Any], uncached_p99_ms: float) -> dict[str, Any]:
    """Put a phase's p99 beside the one without a cache."""
    ratio = phase["p99_ms"] / uncached_p99_ms
    shown = {name: value for name, value in phase.items() if name not in ("phase", "at_most_seconds", "met")}
    return shown | {"p99_over_uncached": round(ratio, 2), "met": phase["met"] | {"p99": ratio <= P99_OVER_UNCACHED}}


def main() -> None:
    """Parse the command line and print one JSON object a line, the summary last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="that Redis is hurt, and that a phase without that lasts")
    parser.add_argument("--recovery", type=float, default=10.0, help="seconds that the load goes on for after Redis is back")
    parser.add_argument("--repeat", type=float, default=0.5, help="share of the requests that repeat an earlier one of the phase")
    parser.add_argument("--sample", type=int, default=20, help="answers of a phase that are compared with fresh ones")
    parser.add_argument("--redis-only", action="store_true", help="the loaded server has no memory of its own, only Redis")
    parser.add_argument("--only", help="only the fault whose name begins so")
    parser.add_argument("--seed", type=int, default=0, help="of the texts")
    print(json.dumps(run(parser.parse_args())))


if __name__ == "__main__":
    main()
