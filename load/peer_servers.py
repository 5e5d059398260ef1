"""Real servers of other projects, each from an environment of its own (`make setup-peers`) and in a process group of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import httpx

from servers import REPOSITORY, free_port

PEERS = REPOSITORY / "load" / "peers"
# What matters to the figures, of all that is installed there.
LIBRARIES = ("sentence-transformers", "infinity-emb", "torch", "transformers", "tokenizers", "fastapi", "uvicorn")
# Nothing is fetched from a hub, and nobody is told that it runs.
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "true"}
_READY_SECONDS, _STOP_SECONDS = 180.0, 15.0


class PeerServer:
    """One running peer. command: its `{port}` is replaced by a free port · cwd: where it starts."""

    def __init__(self, environment: str, command: Sequence[str], settings: Mapping[str, str], cwd: Path = PEERS) -> None:
        self.bin = REPOSITORY / f".venv-peer-{environment}" / "bin"
        if not (self.bin / command[0]).is_file():
            raise SystemExit(f"error: there is no {self.bin / command[0]}: make setup-peers")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = tempfile.TemporaryDirectory(prefix="reranker-peer-")
        self._log = Path(self._folder.name, "log")
        parts = [str(self.bin / command[0]), *(part.format(port=self.port) for part in command[1:])]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                parts, cwd=cwd, env={**os.environ, **_ENVIRONMENT, **settings}, stdout=log, stderr=log, start_new_session=True
            )

    def __enter__(self) -> Self:
        return self.wait_ready()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_ready(self) -> Self:
        """Wait for /health; the log is in the error when it never comes."""
        end = time.monotonic() + _READY_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if httpx.get(f"{self.url}/health", timeout=2).status_code == httpx.codes.OK:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        log = self._log.read_text(errors="replace")
        self.stop()
        raise SystemExit(f"error: {self.bin.parent.name} did not become ready; its log ends so:\n{log[-2000:]}")

    def stop(self) -> None:
        """SIGTERM to its process group, SIGKILL to what is left of it."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(_STOP_SECONDS)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        self._folder.cleanup()


def sentence_transformers(folder: Path) -> PeerServer:
    """CrossEncoder behind plain FastAPI: cross_encoder_app.py."""
    command = ["uvicorn", "cross_encoder_app:app", "--host", "127.0.0.1", "--port", "{port}", "--log-level", "warning"]
    return PeerServer("sentence-transformers", command, {"MODEL_FOLDER": str(folder)})


def infinity(folder: Path) -> PeerServer:
    """Infinity's Python server on torch; batch size and precision are said, all else is its default."""
    command = ["infinity_emb", "v2", "--model-id", str(folder), "--engine", "torch", "--device", "cpu", "--dtype", "float32"]
    options = ["--batch-size", "32", "--host", "127.0.0.1", "--port", "{port}", "--log-level", "warning"]
    return PeerServer("infinity", command + options, {})
