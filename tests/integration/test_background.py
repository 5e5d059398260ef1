"""make start, stop, restart, status and logs, on real servers with the settings of deploy/profiles."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from background_service import BackgroundService
from redis_servers import RedisServer
from servers import REPOSITORY


@pytest.fixture
def service(builtin_tag: str, tmp_path: Path) -> Iterator[BackgroundService]:
    """A port on which nothing runs yet, and nothing will when the test is over."""
    assert builtin_tag
    background = BackgroundService(Path(os.environ["BENTOML_HOME"]), tmp_path)
    yield background
    background.call("stop", "--stop-seconds", "5")


def test_a_life_in_the_background(service: BackgroundService) -> None:
    """Started once, asked, watched, stopped; with the settings of a profile, of which the command line's win."""
    assert service.call("status").returncode == 3
    assert "nothing was started on port" in service.make("logs").stderr
    started = service.make("start", "PROFILE=cpu", RERANKER_MAX_PARALLEL="3")
    assert started.returncode == 0, started.stderr
    pid = service.process().pid
    assert f"ready: pid {pid}, port {service.port}" in started.stdout
    assert service.rerank().status_code == 200
    assert service.health()["limits"]["max_parallel"] == 3  # type: ignore[index]
    again = service.make("start", "PROFILE=cpu")
    assert (again.returncode, again.stdout) == (0, f"runs already: pid {pid}, port {service.port}\n")
    status = service.call("status")
    assert status.returncode == 0
    for line in (f"pid       {pid}, ready", "on cpu, auto was asked for", "0 requests wait", "uptime", "all-minilm-l6-v2"):
        assert line in status.stdout
    assert first_line_of_logs(service) in service.log
    run_the_looks_of_the_page(service.port)
    stopped = service.make("stop")
    assert (stopped.returncode, stopped.stdout) == (0, f"stopped: pid {pid}\n")
    assert not service.pid_path.exists()
    assert service.call("status").returncode == 3


def run_the_looks_of_the_page(port: int) -> None:
    """Run what docs/operations.md looks at a server with, word for word but for the port; each prints something."""
    page = (REPOSITORY / "docs" / "operations.md").read_text()
    looks = re.findall(r"^curl .*$", page, re.MULTILINE)
    assert len(looks) == 5
    for look in looks:
        command = look.replace("localhost:3000", f"localhost:{port}")
        ran = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=30, check=False)
        assert (ran.returncode, bool(ran.stdout)) == (0, True), look


def first_line_of_logs(service: BackgroundService) -> str:
    """Read a line of `make logs`, which follows the log for ever."""
    tail = ["make", "logs", f"PORT={service.port}", f"RUN={service.folder}", "LINES=1"]
    with subprocess.Popen(
        tail, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    ) as following:
        assert following.stdout is not None
        line = following.stdout.readline()
        assert following.poll() is None
        os.killpg(following.pid, signal.SIGTERM)
    assert line
    return line


def test_a_server_that_was_killed_leaves_nothing(service: BackgroundService) -> None:
    """Its stale pid file is seen, and its workers, which keep the port, are ended."""
    started = service.make("start", "PROFILE=memory-constrained")
    assert started.returncode == 0, started.stderr
    assert service.rerank().json()["meta"]["cached_documents"] == 0
    assert service.rerank().json()["meta"]["cached_documents"] == 0  # this profile has no cache
    process = service.process()
    workers = process.children(recursive=True)
    process.kill()
    process.wait(10)
    status = service.call("status")
    assert status.returncode == 1
    assert "is left from one that is gone" in status.stdout
    assert service.call("stop").returncode == 0
    assert psutil.wait_procs(workers, timeout=10)[1] == []  # one that was ending by itself takes its moment
    assert service.call("status").returncode == 3


def test_a_hung_server_is_killed_and_said_so(service: BackgroundService) -> None:
    """SIGTERM does nothing to a stopped process; the profile is large, with a Redis."""
    with RedisServer() as redis:
        started = service.make("restart", "PROFILE=large", f"REDIS_URL={redis.url}")
        assert started.returncode == 0, started.stderr
        assert f"does not run on port {service.port}\nready: pid" in started.stdout
        assert service.rerank().status_code == 200
        health = service.health()
        assert health["model"]["quantization"] == "bf16"  # type: ignore[index]
        assert health["distributed_cache"]["connected"]  # type: ignore[index]
        process = service.process()
        process.suspend()
        stopped = service.call("stop", "--stop-seconds", "0.5")
    assert stopped.returncode == 0
    assert f"pid {process.pid} did not end within 0.5 s of SIGTERM, and was killed" in stopped.stderr
    assert service.call("status").returncode == 3


def test_a_start_that_fails_shows_why(service: BackgroundService) -> None:
    """The log's last lines, and a failure; a stranger who says on the port that all is well is not taken for the service."""

    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Be quiet."""

    with ThreadingHTTPServer(("127.0.0.1", service.port), Stranger) as stranger:
        thread = threading.Thread(target=stranger.serve_forever)
        thread.start()
        started = service.make("start")
        stranger.shutdown()
        thread.join()
    assert started.returncode != 0
    assert "it ended with code 1; its log says:" in started.stderr
    assert f"port {service.port} is taken" in started.stderr
    assert service.call("status").returncode == 3


def test_a_pid_that_another_program_has_now_is_not_touched(service: BackgroundService) -> None:
    """Neither taken for the server nor ended with it."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        service.pid_path.parent.mkdir(parents=True)
        service.pid_path.write_text(f"{other.pid}\n")
        assert service.call("status").returncode == 1
        assert "does not run" in service.call("stop").stdout
        assert other.poll() is None
        with contextlib.suppress(BrokenPipeError):
            other.communicate(b"\n")
    assert not service.pid_path.exists()


def test_an_unknown_profile_says_which_there_are(service: BackgroundService) -> None:
    """One line, and nothing is started."""
    started = service.make("start", "PROFILE=huge")
    assert started.returncode != 0
    assert "PROFILE is one of" in started.stderr
    assert "memory-constrained" in started.stderr
