"""A `bentoml serve` in the background: its pid file, its log and a BENTOML_HOME of its own, in one folder for each port.

`bentoml serve` empties the metrics directory in its BENTOML_HOME, so that servers side by side need one each; the models and Bentos in it are
links to the operator's.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[1]
_POLL_SECONDS = 0.1
_ANSWER_SECONDS = 5.0
_ANYWHERE = ("", "0.0.0.0", "::")  # noqa: S104  compared with, not bound to
_SHUTDOWN_SECONDS = 60.0  # RERANKER_SHUTDOWN_SECONDS where nobody sets it
_ERRORS = ("[ERROR]", "[CRITICAL]")
_SHARED = ("models", "bentos")


class Background:
    """The server on one port. folder: where its files lie; it is made when it is needed."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self._folder = folder.resolve() / str(port)
        self.pid_path = self._folder / "pid"
        self.log_path = self._folder / "log"
        self._home = self._folder / "home"

    def process(self) -> psutil.Process | None:
        """Find the server; None if the pid file names nobody, a dead process or another program's."""
        try:
            process = psutil.Process(int(self.pid_path.read_text(encoding="ascii")))
            command = process.cmdline()
            ours = Path(command[1]).name == "bentoml" and command[2:5] == ["serve", "--port", str(self.port)]
            return process if ours and process.status() != psutil.STATUS_ZOMBIE else None
        except (OSError, ValueError, IndexError, psutil.Error):
            return None

    def shutdown_seconds(self) -> float:
        """Read from the running server's environment how long it may take to end."""
        with contextlib.suppress(psutil.Error, ValueError):
            process = self.process()
            return float((process and process.environ().get("RERANKER_SHUTDOWN_SECONDS")) or _SHUTDOWN_SECONDS)
        return _SHUTDOWN_SECONDS

    def left_over(self) -> list[psutil.Process]:
        """Find worker processes that outlived their server; they keep its port."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                worker = process.environ().get("BENTOML_HOME") == str(self._home)
                if worker and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def launch(self) -> subprocess.Popen[bytes]:
        """Start `bentoml serve` in a session of its own; the log of the run before is kept as log.previous."""
        self._make_home()
        if self.log_path.exists():
            self.log_path.replace(self.log_path.with_suffix(".previous"))
        environment = {**os.environ, "BENTOML_HOME": str(self._home)}
        environment.pop("PROMETHEUS_MULTIPROC_DIR", None)
        command = [sys.executable, str(Path(sys.executable).parent / "bentoml"), "serve", "--port", str(self.port)]
        with self.log_path.open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.pid_path.write_text(f"{process.pid}\n", encoding="ascii")
        return process

    def _make_home(self) -> None:
        models = Path(os.environ.get("BENTOML_HOME") or Path.home() / "bentoml").resolve()
        self._home.mkdir(parents=True, exist_ok=True)
        for name in _SHARED:
            (models / name).mkdir(parents=True, exist_ok=True)
            link = self._home / name
            link.unlink(missing_ok=True)
            link.symlink_to(models / name)

    def ready(self) -> bool:
        """Tell whether this server, and no other program on its port, says that it is ready."""
        return self._listens() and self._get("/readyz")[0] == http.client.OK

    def _listens(self) -> bool:
        process = self.process()
        with contextlib.suppress(psutil.Error):
            return process is not None and any(
                connection.status == psutil.CONN_LISTEN and connection.laddr.port == self.port
                for connection in process.net_connections("tcp")
            )
        return False

    def health(self) -> dict[str, Any]:
        """Read /health; empty where it does not answer, or not to callers without a key."""
        body = self._get("/health")[1]
        with contextlib.suppress(ValueError):
            told = json.loads(body)
            return told if "model" in told else {}
        return {}

    def _get(self, path: str) -> tuple[int, bytes]:
        host = os.environ.get("BENTOML_HOST", "")
        connection = http.client.HTTPConnection("127.0.0.1" if host in _ANYWHERE else host, self.port, timeout=_ANSWER_SECONDS)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def why(self, count: int) -> str:
        """Return what of the log tells why a start failed: its last lines, and the errors before them."""
        with contextlib.suppress(OSError):
            lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
            errors = [line for line in lines[:-count] if any(level in line for level in _ERRORS)]
            return "\n".join(errors[-count:] + lines[-count:])
        return ""

    def forget(self) -> None:
        """Remove the pid file."""
        self.pid_path.unlink(missing_ok=True)


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Look ten times a second until it holds; whether it did in time."""
    end = time.monotonic() + seconds
    while not (holds := condition()) and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
    return holds
