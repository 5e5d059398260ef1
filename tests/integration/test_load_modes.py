"""`make load` against real servers: what it reports, when it fails, and that it hides no wait."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from drive import Plan, drive
from servers import REPOSITORY, Server
from workload import WorkloadSpec

STALL_SECONDS = 0.6


@pytest.fixture(scope="module")
def server(builtin_tag: str) -> Iterator[Server]:
    """Serve the built-in model."""
    assert builtin_tag
    with Server(Path(os.environ["BENTOML_HOME"]), RERANKER_TORCH_THREADS=1) as running:
        yield running


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a mode as make does."""
    command = [sys.executable, str(REPOSITORY / "load" / "load_modes.py"), *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)


def test_a_load_reports_what_it_measured(server: Server, tmp_path: Path) -> None:
    """Every request, the share that repeats, what the caches saved, and what was served; the thresholds hold."""
    said = ["load", "--url", server.url, "--reports", str(tmp_path), "--no-plots", "--requests", "100", "--concurrency", "4"]
    ran = run(*said, "--documents", "2", "--repeats", "0.4", "--max-p99-ms", "60000")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == str(tmp_path / "load.md")
    raw = json.loads((tmp_path / "load.json").read_text())
    told = raw["figures"]["load"]
    assert (told["answered"], told["failed"], told["repeated_share"]) == (100, 0, 0.4)
    assert (told["pairs"], told["computed"]) == (200, 120)
    assert told["hits"] + told["shared"] == 80
    assert raw["target"]["model"]["quantization"] == "none"
    assert all(threshold["met"] for threshold in raw["thresholds"])
    report = (tmp_path / "load.md").read_text()
    assert "all-minilm-l6-v2" in report
    assert server.url not in report + (tmp_path / "load.json").read_text()


def test_a_broken_threshold_ends_with_one_line_and_1(server: Server, tmp_path: Path) -> None:
    """For BentoML's client in an open loop; the report is written all the same."""
    said = ["load", "--url", server.url, "--reports", str(tmp_path), "--no-plots", "--requests", "10", "--documents", "2"]
    ran = run(*said, "--users", "bentoml-async", "--rate", "20", "--arrivals", "constant", "--max-p99-ms", "0.01")
    assert ran.returncode == 1
    [line] = [line for line in ran.stderr.splitlines() if line.startswith("broken")]
    assert line.startswith("broken: p99: ")
    assert line.endswith("asked: at most 0.01 ms")
    told = json.loads((tmp_path / "load.json").read_text())["figures"]["load"]
    assert (told["answered"], told["offered_per_second"]) == (10, 20)
    assert "**no**" in (tmp_path / "load.md").read_text()


def test_what_cannot_be_run_ends_with_2(tmp_path: Path) -> None:
    """No server, a file that cannot be used, or none: one line that says what to do."""
    (tmp_path / "wrong.jsonl").write_text("{}\n")
    for said, complaint in (
        (["--url", "http://127.0.0.1:1"], "error: no server answers at http://127.0.0.1:1 (ConnectError): start one"),
        (["--queries", str(tmp_path / "wrong.jsonl")], "line 1: no query there; expected one query a line"),
    ):
        ran = run("load", *said)
        assert ran.returncode == 2
        assert complaint in ran.stderr.splitlines()[-1]


class Stalling(BaseHTTPRequestHandler):
    """Answers one request after the other, the first one late."""

    stalled = threading.Event()

    def do_POST(self) -> None:
        """Answer as the service does, with half of the documents known."""
        self.rfile.read(int(self.headers["content-length"]))
        if not self.stalled.is_set():
            self.stalled.wait(STALL_SECONDS)
            self.stalled.set()
        self.send_response(200)
        for name in ("x-cache-hits", "x-cache-misses"):
            self.send_header(name, "1")
        self.send_header("x-cache-shared", "0")
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Stay silent."""


def test_an_open_loop_counts_the_wait_behind_a_slow_answer() -> None:
    """Requests are sent when they are due, whatever has become of the first, and each counts its own wait."""
    with HTTPServer(("127.0.0.1", 0), Stalling) as stalling:
        thread = threading.Thread(target=stalling.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{stalling.server_address[1]}"
        try:
            stretch = drive(Plan(url, WorkloadSpec(documents=2), rate=20, arrivals="constant", seconds=0.5))
        finally:
            stalling.shutdown()
            thread.join(10)
    assert [row.due for row in stretch.rows] == pytest.approx([number / 20 for number in range(10)], abs=1e-3)
    assert all(row.sent < row.due + STALL_SECONDS / 2 for row in stretch.rows)
    assert all(row.latency > 0.9 * (STALL_SECONDS - row.due) for row in stretch.rows)
    assert stretch.told()["computed_share"] == 0.5
