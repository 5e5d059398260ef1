"""Real `bentoml serve` processes for tests and benchmarks, each on a free port with a BENTOML_HOME of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

REPOSITORY = Path(__file__).resolve().parents[1]
_WORKER = "_bentoml_impl.worker.service"


def free_port() -> int:
    """Find a port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """One running server.

    home: the BENTOML_HOME whose models it serves (its other folders are the server's own) · options: further ones of `bentoml serve`.
    """

    def __init__(
        self,
        home: Path,
        *,
        bento: str = ".",
        cwd: Path = REPOSITORY,
        python: str = sys.executable,
        options: Sequence[str] = (),
        **settings: object,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = tempfile.TemporaryDirectory(prefix="reranker-server-")
        own_home = Path(self._folder.name, "home")
        own_home.mkdir()
        for name in ("models", "bentos"):
            (home / name).mkdir(exist_ok=True)
            (own_home / name).symlink_to(home / name)
        self.log_path = Path(self._folder.name, "log")
        environment = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
        environment |= {
            "BENTOML_HOME": str(own_home),
            "BENTOML_DO_NOT_TRACK": "True",
            "QUANTIZATION": "none",
            "RERANKER_DRAIN_SECONDS": "0",
        }
        environment |= {name: str(value) for name, value in settings.items()}
        command = [
            str(Path(python).parent / "bentoml"),
            "serve",
            bento,
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            *options,
        ]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def __enter__(self) -> Self:
        return self.wait_ready()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def log(self) -> str:
        """Everything the server has printed."""
        return self.log_path.read_text(errors="replace")

    def get(self, path: str, timeout: float = 10.0) -> httpx.Response:
        """GET a path."""
        return httpx.get(self.url + path, timeout=timeout)

    def post(self, path: str = "/rerank", timeout: float = 60.0, **body: Any) -> httpx.Response:
        """POST a JSON body."""
        return httpx.post(self.url + path, json=body, timeout=timeout)

    def wait_ready(self, timeout: float = 120.0) -> Self:
        """Wait for /readyz; the log is in the error when it never comes."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            try:
                if self.get("/readyz", timeout=2).status_code == httpx.codes.OK:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        log = self.log
        self.stop()
        raise AssertionError(f"the server did not become ready; its log:\n{log}")

    def workers(self, service: str) -> list[psutil.Process]:
        """Find the live worker processes of a service: Reranker, Scorer, Scorer2 and so on."""
        found = []
        for child in psutil.Process(self.process.pid).children():
            try:
                command = child.cmdline()
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            if _WORKER in command and command[command.index("--service-name") + 1] == service:
                found.append(child)
        return found

    def wait_exit(self, timeout: float = 60.0) -> int:
        """Wait until the server ends by itself; its exit code."""
        return self.process.wait(timeout)

    def stop(self) -> int:
        """SIGTERM, and SIGKILL for what does not end within 20 s; the exit code."""
        children = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait(10)
        for child in children:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue
        self._folder.cleanup()
        return code
