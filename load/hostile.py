"""One hostile client beside eight honest ones: `make hostile`.

Phases without and with the hostile client take turns within one run, once with honest clients that send all-new text and once with
honest clients whose ten documents are all known. The hostile client is a process of its own that cycles, as fast as it can, through
documents of 10 MB, as big a document as is let in, 100,000 documents, JSON that is slow to parse, gzip bombs, half-sent bodies that stay open
and wrong keys, on several connections at once. It runs at the lowest CPU priority in one phase and at everybody's in the next, since it shares the machine's
cores with the server; how much CPU it took is told.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import http.client
import itertools
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests"), str(REPOSITORY / "load")]

import psutil  # noqa: E402  the path must be set first

from saving import save  # noqa: E402
from servers import Server  # noqa: E402
from texts import Texts  # noqa: E402

CLIENTS, DOCUMENTS, KNOWN_REQUESTS = 8, 10, 40
HONEST, HOSTILE = "honest-key", "hostile-key"
HALF_SENT_OPEN = 200
CONNECTIONS = 4  # of the hostile client, beside those that it leaves half sent
LEAD_SECONDS = 2.0
P99_RATIO, KNOWN_P99_MORE_MS = 2.0, 50.0
PHASES = ("without", "with, niced", "with")
JSON = {"content-type": "application/json"}


class Honest:
    """Eight closed loops; `known`: of requests that were all sent before."""

    def __init__(self, port: int, *, known: bool, seed: int) -> None:
        self._port = port
        texts = Texts(seed)
        count = KNOWN_REQUESTS if known else 10**9
        bodies = (self._body(*texts.request(DOCUMENTS)) for _ in range(count))
        self._bodies = itertools.cycle(list(bodies)) if known else bodies
        self._known = known
        self._lock = threading.Lock()
        self._seconds: list[float] = []
        self._failures: list[str] = []

    @staticmethod
    def _body(query: str, documents: list[str]) -> bytes:
        return json.dumps({"query": query, "documents": documents}).encode()

    def run(self, seconds: float) -> dict[str, Any]:
        """Send for so long; latencies and failures."""
        if self._known:
            self._loop(requests=KNOWN_REQUESTS)
            self._seconds.clear()
        print("warm", flush=True)
        end = time.perf_counter() + seconds
        threads = [threading.Thread(target=self._loop, args=(end,)) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"seconds": self._seconds, "failures": self._failures}

    def _loop(self, end: float = float("inf"), requests: int = 10**9) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        for _ in range(requests):
            if time.perf_counter() >= end:
                break
            with self._lock:
                body = next(self._bodies)
            start = time.perf_counter()
            try:
                connection.request("POST", "/v2/rerank", body, JSON | {"authorization": f"Bearer {HONEST}"})
                response = connection.getresponse()
                response.read()
                failure = None if response.status == http.client.OK else str(response.status)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                failure = type(error).__name__
            with self._lock:
                if failure:
                    self._failures.append(failure)
                else:
                    self._seconds.append(time.perf_counter() - start)
        connection.close()


class Hostile:
    """One client that does what hurts, until it is ended; then it tells what it was answered."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._answers: Counter[str] = Counter()
        self._half_sent: deque[socket.socket] = deque()
        text = b'{"query":"q","documents":["'
        self._bodies = {
            "10 MB": (text + b"x" * 10_000_000 + b'"]}', {}),
            "8 MB": (text + b"x" * 8_000_000 + b'"]}', {}),
            "100,000 documents": (json.dumps({"query": "q", "documents": [f"d{n}" for n in range(100_000)]}).encode(), {}),
            "lists": (b'{"query":"q","documents":[' + b"[]," * 2_600_000 + b"1]}", {}),
            "nested": (b"[" * 8_000_000, {}),
            "fields": (json.dumps({"query": "q"} | {str(n): 1 for n in range(19_900)}).encode(), {}),
            "surrogates": (text + b"\\ud800" * 1_300_000 + b'"]}', {}),
            "gzip bomb": (gzip.compress(text + b"x" * 1_000_000_000, 1), {"content-encoding": "gzip"}),
            "gzip of 8 MB": (gzip.compress(text + b"x" * 8_000_000 + b'"]}', 9), {"content-encoding": "gzip"}),
        }

    def run(self, ready: Path) -> None:
        """Cycle until SIGTERM."""
        ready.touch()
        for number in range(CONNECTIONS):
            threading.Thread(target=self._cycle, args=(number,), daemon=True).start()
        while True:
            time.sleep(0.2)
            written = ready.with_suffix(".written")
            written.write_text(json.dumps(dict(self._answers)))
            written.replace(ready)

    def _cycle(self, number: int) -> None:
        bodies = list(self._bodies.items())
        while True:
            for name, (body, headers) in bodies[number:] + bodies[:number]:
                self._post(name, body, {"authorization": HOSTILE} | headers)
            self._half_send()
            for _ in range(5):
                self._post("wrong key", b"{}", {"authorization": "Bearer wrong"})

    def _post(self, name: str, body: bytes, headers: dict[str, str]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request("POST", "/rerank", body, JSON | headers)
            self._answers[f"{name}: {connection.getresponse().status}"] += 1
        except (OSError, http.client.HTTPException) as error:
            self._answers[f"{name}: {type(error).__name__}"] += 1
        connection.close()

    def _half_send(self) -> None:
        head = f"POST /rerank HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nauthorization: {HOSTILE}\r\ncontent-length: 8000000\r\n\r\n"
        connection = socket.create_connection(("127.0.0.1", self._port), timeout=60)
        with contextlib.suppress(OSError):  # it may be cut off before
            connection.sendall(head.encode() + b"x" * 4_000_000)
        self._half_sent.append(connection)
        self._answers["half sent"] += 1
        if len(self._half_sent) > HALF_SENT_OPEN:
            self._half_sent.popleft().close()


def percentile(seconds: list[float], share: float) -> float:
    """In milliseconds."""
    return round(1000 * sorted(seconds)[min(len(seconds) - 1, int(share * len(seconds)))], 1) if seconds else float("nan")


def phase(server: Server, kind: str, *, known: bool, seed: int, seconds: float, folder: Path) -> dict[str, Any]:
    """Run the honest clients for a phase, beside the hostile one where there is one."""
    script = [sys.executable, __file__]
    ready = folder / f"hostile-{time.monotonic_ns()}"
    attack = None
    if kind != "without":
        command = [
            *(["nice", "-n", "19"] if "niced" in kind else []),
            *script,
            "--hostile",
            str(ready),
            "--port",
            str(server.port),
        ]
        attack = psutil.Process(subprocess.Popen(command).pid)
        while not ready.exists():
            time.sleep(0.05)
        time.sleep(LEAD_SECONDS)
    try:
        report, seen = measured(server, kind, attack, script, known=known, seed=seed, seconds=seconds)
    finally:
        if attack:
            attack.terminate()
            attack.wait()
    if attack:
        report["hostile"] = json.loads(ready.read_text() or "{}")
    print(json.dumps(report), flush=True)
    return report | {"seconds": seen["seconds"]}


def measured(
    server: Server,
    kind: str,
    attack: psutil.Process | None,
    script: list[str],
    *,
    known: bool,
    seed: int,
    seconds: float,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the honest clients, and tell what they and everybody else took."""
    [entry] = server.workers("Reranker")
    command = [*script, "--honest", "known" if known else "new", "--port", str(server.port), "--seed", str(seed)]
    with subprocess.Popen([*command, "--seconds", str(seconds)], stdout=subprocess.PIPE, text=True) as honest:
        honest.stdout.readline()
        before, attack_before, start = cpu(entry), cpu(attack) if attack else 0.0, time.perf_counter()
        seen = json.loads(honest.stdout.read())
        wall = time.perf_counter() - start
    report = {
        "clients": "known" if known else "new",
        "phase": kind,
        "requests": len(seen["seconds"]),
        "failed": dict(Counter(seen["failures"])),
        "p50_ms": percentile(seen["seconds"], 0.5),
        "p99_ms": percentile(seen["seconds"], 0.99),
        "greatest_ms": percentile(seen["seconds"], 1.0),
        "entry_cpu": round((cpu(entry) - before) / wall, 2),
        "entry_mb": entry.memory_info().rss // 2**20,
    }
    if attack:
        report["hostile_cpu"] = round((cpu(attack) - attack_before) / wall, 2)
    return report, seen


def cpu(process: psutil.Process) -> float:
    """CPU seconds used so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def judged(phases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pool the phases of a kind and compare them with those without the hostile client."""
    rows = []
    for clients in ("new", "known"):
        pooled = {
            kind: [s for p in phases if (p["clients"], p["phase"]) == (clients, kind) for s in p["seconds"]] for kind in PHASES
        }
        base = percentile(pooled["without"], 0.99)
        for kind in PHASES:
            mine = [p for p in phases if (p["clients"], p["phase"]) == (clients, kind)]
            p99 = percentile(pooled[kind], 0.99)
            failed = sum(sum(p["failed"].values()) for p in mine)
            met = failed == 0 and p99 <= P99_RATIO * base and (clients == "new" or p99 <= base + KNOWN_P99_MORE_MS)
            rows.append(
                {
                    "clients": clients,
                    "phase": kind,
                    "requests": len(pooled[kind]),
                    "failed": failed,
                    "p50_ms": percentile(pooled[kind], 0.5),
                    "p99_ms": p99,
                    "p99_over_without": round(p99 / base, 2),
                    "hostile_cpu": [p.get("hostile_cpu", 0.0) for p in mine],
                    "entry_cpu": [p["entry_cpu"] for p in mine],
                    "entry_mb": [p["entry_mb"] for p in mine],
                    "met": met,
                }
            )
    return rows


def write_report(path: Path, rows: list[dict[str, Any]], phases: list[dict[str, Any]], seconds: float) -> None:
    """Write the table and the raw figures."""
    commit = subprocess.run(
        [shutil.which("git") or "git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout.strip()
    lines = [
        "# One hostile client beside eight honest ones",
        "",
        (
            f"Command: `make hostile` at commit {commit}, {os.cpu_count()} cores, Python {platform.python_version()}, built-in model in fp32, default settings "
            f"but for two API keys and a cache that keeps what is known. 8 honest clients x {DOCUMENTS} documents, closed loop, {seconds:g} s a phase, phases taking turns; figures are pooled over the phases of "
            "a kind. `niced`: the hostile client runs at the lowest CPU priority, so that it takes no cores from the server that the server wants. Asked: no failed "
            f"request, p99 at most {P99_RATIO:g} times the one without, and for known documents at most {KNOWN_P99_MORE_MS:g} ms more."
        ),
        "",
        "| honest clients send | hostile client | requests | failed | p50 ms | p99 ms | p99 over without | cores it took | cores of the entry worker | MB of it | met |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        span = [f"{min(row[name])} to {max(row[name])}" for name in ("hostile_cpu", "entry_cpu", "entry_mb")]
        cells = [row[name] for name in ("clients", "phase", "requests", "failed", "p50_ms", "p99_ms", "p99_over_without")]
        lines.append("| " + " | ".join(map(str, [*cells, *span, "yes" if row["met"] else "no"])) + " |")
    raw = [json.dumps({name: value for name, value in each.items() if name != "seconds"}) for each in phases]
    path.write_text("\n".join([*lines, "", "Raw figures:", "", "```", *raw, "```", ""]))


def main() -> int:
    """Run all phases, or play one of the clients."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of a phase")
    parser.add_argument("--rounds", type=int, default=3, help="of phases without and with")
    parser.add_argument("--clients", choices=["new", "known", "both"], default="both")
    parser.add_argument("--report", type=Path, default=REPOSITORY / "load" / "reports" / "hostile.md")
    parser.add_argument("--honest", choices=["new", "known"], help=argparse.SUPPRESS)
    parser.add_argument("--hostile", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.honest:
        print(json.dumps(Honest(arguments.port, known=arguments.honest == "known", seed=arguments.seed).run(arguments.seconds)))
        return 0
    if arguments.hostile:
        Hostile(arguments.port).run(arguments.hostile)
        return 0
    with tempfile.TemporaryDirectory(prefix="reranker-hostile-") as folder:
        home = Path(folder, "home")
        home.mkdir()
        save(home)
        phases = []
        with Server(home, RERANKER_API_KEYS=f"{HONEST},{HOSTILE}", CACHE_TTL_SECONDS=86_400) as server:
            for known in [False, True]:
                if arguments.clients in ("both", "known" if known else "new"):
                    for number in range(arguments.rounds):
                        for kind in PHASES:
                            seed = 0 if known else 1 + 100 * number + PHASES.index(kind)
                            phases.append(
                                phase(server, kind, known=known, seed=seed, seconds=arguments.seconds, folder=Path(folder))
                            )
    rows = [row for row in judged(phases) if row["requests"]]
    for row in rows:
        print(json.dumps(row))
    if arguments.clients == "both":
        write_report(arguments.report, rows, phases, arguments.seconds)
    return 0 if all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
