"""The service in the background as `make` runs it, with a port and a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
from psutil import Process

from servers import REPOSITORY, free_port

_OUTER = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}  # of the make that runs the tests
_QUICK = {"RERANKER_DRAIN_SECONDS": "0"}  # no balancer is in front


class BackgroundService:
    """One port. home: the BENTOML_HOME whose models it serves."""

    def __init__(self, home: Path, folder: Path) -> None:
        self.port = free_port()
        self.folder = folder
        self._home = home

    @property
    def pid_path(self) -> Path:
        """Where the server's process is named."""
        return self.folder / str(self.port) / "pid"

    @property
    def log(self) -> str:
        """What the server has printed since its start."""
        return (self.folder / str(self.port) / "log").read_text()

    def make(self, target: str, *variables: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run a make target for this port in this environment, which is there already."""
        command = ["make", "-o", "setup", f"VENV={Path(sys.executable).parent.parent}", target]
        return self._run([*command, f"PORT={self.port}", f"RUN={self.folder}", *variables], settings)

    def call(self, action: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run what make runs, for its exit code, which make's own hides."""
        script = [sys.executable, "deploy/service.py", action, "--port", str(self.port), "--folder", str(self.folder)]
        return self._run([*script, *options], {})

    def _run(self, command: list[str], settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if name not in _OUTER}
        environment = kept | {"BENTOML_HOME": str(self._home)} | _QUICK | settings
        return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=200, check=False)

    def process(self) -> Process:
        """The server's process, as the pid file names it."""
        return Process(int(self.pid_path.read_text()))

    def rerank(self) -> httpx.Response:
        """Send a request."""
        body = {"query": "what is a reranker?", "documents": ["Bread.", "A reranker sorts documents."], "top_n": 1}
        return httpx.post(f"http://127.0.0.1:{self.port}/rerank", json=body, timeout=30)

    def health(self) -> dict[str, object]:
        """What the server says of itself."""
        told: dict[str, object] = httpx.get(f"http://127.0.0.1:{self.port}/health", timeout=30).json()
        return told
