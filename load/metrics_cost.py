"""What counting costs a request whose pairs are all known: `make bench-metrics`, into load/reports/metrics-cost.md.

Three servers of one entry worker each are asked in turn, request by request, by one client on kept-alive connections: 50 documents of 540
characters, all cached. One has everything that counts taken out (metrics, stages, what would turn stages into spans), two are the service
as it is: how much these differ is what the machine's other work does to the figures. Each request is so compared with its neighbours. The
processor time that the entry workers took for their share of the requests is the steadier figure.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_cache import PATHS, Client, bodies
from loops import percentile
from provenance import REPOSITORY, provenance, sentence, versions
from report_options import REPORTS, command_line
from tables import table

sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

from servers import Server  # noqa: E402  the path must be set first

LONG_SECONDS = 86_400  # nothing expires while it is measured
DOCUMENTS = 50
MOST_MS, MOST_SHARE = 0.1, 0.05
LIBRARIES = ("bentoml", "prometheus-client", "uvicorn", "starlette")
UNCOUNTED = '''
"""The service with nothing in the place of what an entry worker counts with."""

import bento_service.metrics


class Nothing:
    """Whatever is asked of it, nothing happens."""

    def __getattr__(self, name):
        return self

    def __call__(self, *args, **kwargs):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *args):
        return None


bento_service.metrics.EntryMetrics = Nothing

from bento_service.service import Reranker
'''
COUNTED, WITHOUT, TWIN = "as it is", "without", "as it is, again"


class Target:
    """One server, with the connection to it and what its entry worker has taken of the processor."""

    def __init__(self, server: Server, sent: list[bytes]) -> None:
        self._sent = sent
        self._port = server.port
        [self._worker] = server.workers("Reranker")
        client = Client(self._port, None)
        for body in sent:
            client.post(PATHS[0], body, check=False)

    def connect(self) -> Client:
        """Make a connection and send a first request over it, which does not count."""
        client = Client(self._port, str(DOCUMENTS))
        client.post(PATHS[0], self._sent[0])
        return client

    @property
    def cpu_ms(self) -> float:
        """Processor time so far."""
        times = self._worker.cpu_times()
        return 1000 * float(times.user + times.system)


def one_round(targets: dict[str, Target], path: str, sent: list[bytes], requests: int) -> dict[str, Any]:
    """Ask the servers in turn, each as often the first as another; milliseconds, and processor time a request."""
    clients = {name: target.connect() for name, target in targets.items()}
    taken = {name: -target.cpu_ms for name, target in targets.items()}
    spent: dict[str, list[float]] = {name: [] for name in targets}
    order = list(targets)
    for number in range(requests):
        order = [*order[1:], order[0]]
        for name in order:
            spent[name].append(clients[name].post(path, sent[number % len(sent)])[0])
    cpu = {name: (taken[name] + target.cpu_ms) / requests for name, target in targets.items()}
    return {"ms": spent, "cpu_ms": cpu}


def figures(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """All rounds of one route together."""
    ms = {name: [each for turn in rounds for each in turn["ms"][name]] for name in (WITHOUT, COUNTED, TWIN)}
    p50 = {name: statistics.median(values) for name, values in ms.items()}
    allowed = max(MOST_MS, MOST_SHARE * p50[WITHOUT])
    more = {
        name: difference(rounds, ms, *names) for name, names in (("counting", (COUNTED, WITHOUT)), ("nothing", (TWIN, COUNTED)))
    }
    return {
        "p50_ms": p50,
        "p99_ms": {name: percentile(values, 0.99) for name, values in ms.items()},
        "cpu_ms": {name: statistics.mean(turn["cpu_ms"][name] for turn in rounds) for name in ms},
        "more_ms": more,
        "allowed_ms": allowed,
        "met": more["counting"]["median"] <= allowed,
    }


def difference(rounds: list[dict[str, Any]], ms: dict[str, list[float]], one: str, other: str) -> dict[str, float]:
    """How much longer one server's requests took than another's at the same moment: the median, and the rounds' least and most."""
    by_round = [statistics.median(turn["ms"][one]) - statistics.median(turn["ms"][other]) for turn in rounds]
    median = statistics.median(mine - its for mine, its in zip(ms[one], ms[other], strict=True))
    return {"median": median, "least": min(by_round), "most": max(by_round)}


def scrapes(server: Server, count: int) -> dict[str, float]:
    """How long /metrics takes, and how large it is."""
    client, spent = Client(server.port, None), []
    for _ in range(count):
        start = time.perf_counter()
        size = client.get("/metrics")
        spent.append(1000 * (time.perf_counter() - start))
    return {"p50_ms": statistics.median(spent), "p99_ms": percentile(spent, 0.99), "bytes": size}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Start both servers and ask them."""
    sent = bodies(options.bodies, seed=0)
    with tempfile.TemporaryDirectory(prefix="reranker-metrics-cost-") as folder:
        home = Path(folder, "home")
        home.mkdir()
        os.environ["BENTOML_HOME"] = str(home)  # before bentoml is imported
        from model_store_scripts.save_model import save_model

        save_model("builtin")
        Path(folder, "uncounted.py").write_text(UNCOUNTED, encoding="utf-8")
        settings = {"CACHE_TTL_SECONDS": LONG_SECONDS, "PYTHONPATH": REPOSITORY}
        with (
            Server(home, **settings) as counted,
            Server(home, bento="uncounted:Reranker", cwd=Path(folder), **settings) as without,
            Server(home, **settings) as twin,
        ):
            targets = {WITHOUT: Target(without, sent), COUNTED: Target(counted, sent), TWIN: Target(twin, sent)}
            for path in PATHS:
                one_round(targets, path, sent, 100)
            rounds: dict[str, list[dict[str, Any]]] = {path: [] for path in PATHS}
            for turn in range(options.rounds):
                for path in PATHS:
                    rounds[path].append(one_round(targets, path, sent, options.requests))
                    medians = {name: round(statistics.median(ms), 3) for name, ms in rounds[path][-1]["ms"].items()}
                    print(json.dumps({"round": turn, "path": path, "p50_ms": medians}), flush=True)
            told = {"routes": {path: figures(turns) for path, turns in rounds.items()}, "scrape": scrapes(counted, 100)}
    return told


def markdown(result: dict[str, Any]) -> str:
    """Write the report."""
    rows = []
    for path, route in result["routes"].items():
        names = (WITHOUT, COUNTED, TWIN)
        more = [
            "{median:+.3f} ({least:+.3f} to {most:+.3f})".format(**route["more_ms"][what]) for what in ("counting", "nothing")
        ]
        rows.append(
            [
                f"`{path}`",
                ", ".join(f"{route['p50_ms'][name]:.3f}" for name in names),
                *more,
                f"{route['allowed_ms']:.3f}: {'kept' if route['met'] else 'not kept'}",
                ", ".join(f"{route['p99_ms'][name]:.1f}" for name in names),
                ", ".join(f"{route['cpu_ms'][name]:.3f}" for name in names),
            ]
        )
    head = ["route", "p50, ms", "counting takes, ms", "two that count differ by, ms", "allowed", "p99, ms", "CPU, ms"]
    libraries = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    scrape = result["scrape"]
    return "\n".join(
        [
            "# What metrics cost a cached request",
            "",
            f"{sentence(result['provenance'])} {libraries}.",
            "",
            (
                f"One client, {DOCUMENTS} documents of 540 characters, all known to the process; {result['rounds']} rounds of {result['requests']} requests to each of three servers in turn, "
                "request by request: one with everything that counts taken out, and two as the service is. p50, p99 and CPU (of the entry worker, for a request) are theirs in this order. "
                "What counting takes is the median difference of neighbouring requests, and of the rounds' medians the least and the most; how much two servers differ that both count "
                "tells how far to trust it. Allowed are 5 % or 0.1 ms, whichever is larger. No traces are sent; access log and request ids are in all."
            ),
            "",
            *table(head, rows),
            f"`GET /metrics` takes {scrape['p50_ms']:.1f} ms (p99 {scrape['p99_ms']:.1f}) for {scrape['bytes'] / 1000:.0f} KB with one entry worker and one model worker, in a thread beside the requests.",
            "",
        ]
    )


def main() -> None:
    """Measure, and write the report; the exit code is 1 where counting costs more than is allowed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--requests", type=int, default=300, help="to each server and route in a round")
    parser.add_argument("--bodies", type=int, default=10, help="different requests that are cached and sent in turn")
    parser.add_argument("--reports", type=Path, default=REPORTS, help="folder that the report goes to")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers end with this process
    told = provenance(command_line("bench-metrics", sys.argv[1:]))
    result = {
        "provenance": told,
        "versions": versions(Path(sys.executable), LIBRARIES),
        "rounds": options.rounds,
        "requests": options.requests,
        **measure(options),
    }
    options.reports.mkdir(parents=True, exist_ok=True)
    (options.reports / "metrics-cost.md").write_text(markdown(result), encoding="utf-8")
    print(json.dumps({name: result[name] for name in ("routes", "scrape")}))
    print(options.reports / "metrics-cost.md")
    if not all(route["met"] for route in result["routes"].values()):
        raise SystemExit("metrics cost more than 5 % and more than 0.1 ms of a cached request")


if __name__ == "__main__":
    main()
