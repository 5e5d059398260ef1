"""Real queries in their order against the caches: `make replay QUERIES=<file of queries>`.

Each query has 2 documents of at most 8 words that are drawn from its text, so that a query that comes again brings the same pairs.

1. One entry worker without Redis, RERANKER_CACHE_ENTRIES a fifth of the pairs, one connection, one request after the other: the share
   of documents found in the cache, beside the share that an LRU of the same size finds on the same trace.
2. RERANKER_WORKERS=4 with an empty Redis, 8 clients that change their connections: no pair may be computed twice, whichever worker a
   repeat meets. Repeats that meet the first request while it is computed count as shared.

The hit share does not depend on the model, so --model tiny, a few random weights, gives it in a fraction of the time.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests"), str(REPOSITORY / "load")]

from prometheus_client.parser import text_string_to_metric_families  # noqa: E402  the path must be set first

from redis_servers import RedisServer  # noqa: E402
from servers import Server  # noqa: E402
from text_files import TextFileError, read_texts  # noqa: E402
from texts import Texts  # noqa: E402

DOCUMENTS, FEWEST_WORDS, MOST_WORDS = 2, 2, 8
WORKERS, CLIENTS = 4, 8
REQUESTS_PER_CONNECTION = 100  # then a new one, which another entry worker may take
LONG_SECONDS = 86_400  # nothing expires while it is measured
TRIES, RETRY_SECONDS = 50, 0.2
MOST_DIFFERENCE = 0.01
REPORTS = 10
_WORDS = sorted({word for text in [Texts(0)] for _ in range(100) for word in text.document().split()})


class Counts(NamedTuple):
    """Documents of an answer by where their scores came from."""

    hits: int
    misses: int
    shared: int


@dataclass(frozen=True)
class Request:
    """A query with its documents, which are drawn from it."""

    query: str

    @property
    def documents(self) -> list[str]:
        """Distinct texts, always the same for the same query."""
        drawn = random.Random(self.query)
        found: dict[str, None] = {}
        while len(found) < DOCUMENTS:
            found[" ".join(drawn.choices(_WORDS, k=drawn.randint(FEWEST_WORDS, MOST_WORDS)))] = None
        return list(found)

    def body(self) -> bytes:
        """Write it as /v2/rerank reads it."""
        return json.dumps({"query": self.query, "documents": self.documents}).encode()


class Connection:
    """A kept-alive connection to one entry worker."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self.retries = 0

    def post(self, request: Request) -> Counts:
        """Send a request; what the answer's headers say of the caches.

        A 503 is tried again: /readyz answers for one entry worker, and the others may need a moment longer at the start.
        """
        for _ in range(TRIES):
            self._connection.request("POST", "/v2/rerank", request.body(), {"content-type": "application/json"})
            response = self._connection.getresponse()
            answer = response.read()
            if response.status != http.client.SERVICE_UNAVAILABLE:
                break
            self.retries += 1
            time.sleep(RETRY_SECONDS)
        if response.status != http.client.OK:
            raise SystemExit(f"a request failed: {response.status}: {answer[:200]!r}")
        return Counts(*(int(response.getheader(f"x-cache-{name}", "-1")) for name in Counts._fields))

    def close(self) -> None:
        """Close it; the next request opens another."""
        self._connection.close()


def read_requests(path: Path, limit: int | None) -> list[Request]:
    """Read a file as `make replay-load` does: in order, repeats kept."""
    try:
        return [Request(query) for query in read_texts(path, "query")][:limit]
    except TextFileError as error:
        raise SystemExit(f"error: {error}") from None


def lru_hits(trace: Iterable[Request], size: int) -> int:
    """Count the documents that a cache of the least recently used would have found; a request looks all up before it stores."""
    held: OrderedDict[tuple[str, int], None] = OrderedDict()
    hits = 0
    for request in trace:
        pairs = [(request.query, place) for place in range(DOCUMENTS)]
        known = [pair for pair in pairs if pair in held]
        hits += len(known)
        for pair in known:
            held.move_to_end(pair)
        for pair in pairs:
            held.setdefault(pair)
        while len(held) > size:
            held.popitem(last=False)
    return hits


def in_order(port: int, trace: list[Request]) -> Iterator[Counts]:
    """Send all on one connection, one after the other."""
    connection = Connection(port)
    begin = time.perf_counter()
    for number, request in enumerate(trace, start=1):
        yield connection.post(request)
        if number % max(1, len(trace) // REPORTS) == 0:
            print(json.dumps({"sent": number, "of": len(trace), "seconds": round(time.perf_counter() - begin, 1)}), flush=True)
    connection.close()


def one_worker(home: Path, model: str, trace: list[Request], entries: int) -> dict[str, object]:
    """Compare the hits of one entry worker with those of an LRU."""
    begin = time.perf_counter()
    settings = {"RERANKER_CACHE_ENTRIES": entries, "CACHE_TTL_SECONDS": LONG_SECONDS, "REDIS_ENABLED": "false"}
    with Server(home, RERANKER_MODEL=model, **settings) as server:
        ready = time.perf_counter()
        counts = Counts(*map(sum, zip(*in_order(server.port, trace), strict=True)))
        ended = time.perf_counter()
    documents = DOCUMENTS * len(trace)
    real, simulated = counts.hits / documents, lru_hits(trace, entries) / documents
    return {
        "entry_workers": 1,
        "cache_entries": entries,
        **counts._asdict(),
        "hit_ratio": round(real, 5),
        "lru_hit_ratio": round(simulated, 5),
        "unbounded_hit_ratio": round(1 - len(set(trace)) / len(trace), 5),
        "difference": round(abs(real - simulated), 5),
        "at_most": MOST_DIFFERENCE,
        "met": abs(real - simulated) <= MOST_DIFFERENCE,
        "start_seconds": round(ready - begin, 1),
        "seconds": round(ended - ready, 1),
    }


def spread(port: int, trace: list[Request]) -> tuple[dict[str, Counts], int]:
    """Send all with 8 clients, each the next one in order as soon as it is free.

    Returns the answers' counts, added up by query, and how many requests had to be tried again at the start.
    """
    found: dict[str, Counts] = {}
    retries: list[int] = []
    failures: list[BaseException] = []
    lock = threading.Lock()
    cursor = iter(trace)

    def client() -> None:
        connection = Connection(port)
        sent = 0
        while not failures:
            with lock:
                request = next(cursor, None)
            if request is None:
                break
            counts = connection.post(request)
            with lock:
                before = found.get(request.query, Counts(0, 0, 0))
                found[request.query] = Counts(*map(sum, zip(before, counts, strict=True)))
            sent += 1
            if sent % REQUESTS_PER_CONNECTION == 0:
                connection.close()
        connection.close()
        retries.append(connection.retries)

    def guarded() -> None:
        try:
            client()
        except BaseException as error:  # noqa: BLE001  raised again by the one who waits
            failures.append(error)

    threads = [threading.Thread(target=guarded) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for failure in failures:
        raise failure
    return found, sum(retries)


def many_workers(home: Path, model: str, trace: list[Request], entries: int) -> dict[str, object]:
    """Count the documents that several entry workers with one Redis computed again."""
    begin = time.perf_counter()
    long = {"CACHE_TTL_SECONDS": LONG_SECONDS, "REDIS_TTL_SECONDS": LONG_SECONDS, "RERANKER_CACHE_ENTRIES": entries}
    with (
        RedisServer() as redis,
        Server(home, RERANKER_MODEL=model, RERANKER_WORKERS=WORKERS, REDIS_ENABLED="true", REDIS_URL=redis.url, **long) as server,
    ):
        ready = time.perf_counter()
        found, retries = spread(server.port, trace)
        ended = time.perf_counter()
        tiers = metric(server, "reranker_cache_hits_total", "tier")
        errors = metric(server, "reranker_redis_errors_total", "kind")
        cpu_seconds = [process.cpu_times() for process in server.workers("Reranker")]
    counts = Counts(*map(sum, zip(*found.values(), strict=True)))
    again = sum(max(0, counts.misses - DOCUMENTS) for counts in found.values())
    return {
        "entry_workers": WORKERS,
        "cache_entries": entries,
        **counts._asdict(),
        "hit_ratio": round(counts.hits / (DOCUMENTS * len(trace)), 5),
        "hits_by_tier": tiers,
        "redis_errors": errors,
        "cpu_seconds_of_entry_workers": [round(times.user + times.system, 1) for times in cpu_seconds],
        "answered_503_at_the_start": retries,
        "computed_again": again,
        "at_most": 0,
        "met": again == 0,
        "start_seconds": round(ready - begin, 1),
        "seconds": round(ended - ready, 1),
    }


def metric(server: Server, name: str, label: str) -> dict[str, int]:
    """Read a counter of all entry workers together, by one of its labels."""
    totals: Counter[str] = Counter()
    for family in text_string_to_metric_families(server.get("/metrics").text):
        for sample in family.samples:
            if sample.name == name:
                totals[sample.labels[label]] += int(sample.value)
    return dict(totals)


def make_model(name: str, folder: Path) -> str:
    """Save the built-in model, or one of a few random weights; its tag. folder: for the latter's files."""
    from model_store_scripts.save_model import save_model

    if name == "builtin":
        return save_model(name)
    from small_models import make_cross_encoder

    return save_model(str(make_cross_encoder(folder)), name=name)


def run(options: argparse.Namespace) -> dict[str, object]:
    """Replay the file in both ways."""
    trace = read_requests(options.queries, options.limit)
    pairs = DOCUMENTS * len(set(trace))
    entries = max(1, round(options.share * pairs))
    about = {"requests": len(trace), "distinct": len(set(trace)), "documents": DOCUMENTS, "distinct_pairs": pairs}
    print(json.dumps(about), flush=True)
    home = Path(tempfile.mkdtemp(prefix="reranker-replay-"))
    os.environ["BENTOML_HOME"] = str(home)
    parts = {}
    try:
        model = make_model(options.model, home / "tiny")
        for name, part in (("one worker", one_worker), ("several workers and Redis", many_workers)):
            if options.only in (None, name.split()[0]):
                parts[name] = part(home, model, trace, entries)
                print(json.dumps({name: parts[name]}), flush=True)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return {"machine": {"cpus": os.cpu_count(), "python": platform.python_version()}, **about, **parts}


def main() -> None:
    """Parse the command line and print one JSON object a line, the summary last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--queries", type=Path, required=True, help="a file of queries in order of arrival: one a line, .tsv or .jsonl"
    )
    parser.add_argument("--limit", type=int, help="only so many of its queries")
    parser.add_argument("--share", type=float, default=0.2, help="of the distinct pairs that an entry worker remembers")
    parser.add_argument("--model", choices=("builtin", "tiny"), default="builtin")
    parser.add_argument("--only", choices=("one", "several"), help="one of the two parts")
    print(json.dumps(run(parser.parse_args())))


if __name__ == "__main__":
    main()
