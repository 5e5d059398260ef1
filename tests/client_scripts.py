"""The scripts of tests/clients, run by the Pythons of the environments that have their packages, and what they tell."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from servers import REPOSITORY

# In none of these does a package phone home, ask a hub, or learn of a developer's keys and proxies.
_ENVIRONMENT = {
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "HF_HUB_OFFLINE": "1",
    "BENTOML_DO_NOT_TRACK": "True",
    "PATH": "/usr/bin:/bin",
}


def python_of(environment: str) -> Path:
    """Find the Python that has a script's packages. environment: `dev` is the one that runs the tests."""
    if environment == "dev":
        return Path(sys.executable)
    folder = REPOSITORY / f".venv-clients-{environment}"
    assert (folder / ".made").exists(), f"the environment {folder.name} is missing or half made: `make setup-clients` makes it"
    return folder / "bin" / "python"


class ClientScript:
    """One script in its process. news: where it is told that there is something new."""

    def __init__(self, name: str, environment: str, url: str, home: Path, news: queue.Queue[None]) -> None:
        self.name = name
        self.ended = False
        self.ready = False
        self.overloaded: list[str] = []
        self.calls: dict[str, dict[str, Any]] = {}
        self._statuses: dict[str, list[int]] = {}
        self._news = news
        self._log = home / f"{name}.log"
        command = [str(python_of(environment)), str(REPOSITORY / "tests" / "clients" / f"{name}_calls.py"), url]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=_ENVIRONMENT | {"HOME": str(home)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def refused_once(self) -> bool:
        """Whether each overloaded call has got its first 429."""
        return all(429 in self.statuses(call) for call in self.overloaded)

    def statuses(self, call: str) -> list[int]:
        """Statuses of the HTTP answers that a call got, in order."""
        return self._statuses.get(call, [])

    def call(self, name: str) -> dict[str, Any]:
        """How a call ended: `answered` with an `answer`, or `raised` with its class and bases in `kinds`, and a `message`."""
        assert name in self.calls, f"{self.name} told nothing of {name!r}; its log:\n{self._log.read_text(errors='replace')}"
        return self.calls[name]

    def go(self) -> None:
        """Let it make its overloaded calls."""
        if not self.ended:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()

    def stop(self) -> None:
        """End it, if it has not ended by itself."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        self._process.stdin.close()
        self._process.stdout.close()

    def _read(self) -> None:
        for line in self._process.stdout:
            event = json.loads(line)
            kind = event["event"]
            if kind == "ready":
                self.ready, self.overloaded = True, event["overloaded"]
            elif kind == "status":
                self._statuses.setdefault(event["call"], []).append(event["status"])
            else:
                self.calls[event.pop("call")] = event
            self._news.put(None)
        self.ended = True
        self._news.put(None)


class ClientScripts:
    """All of them at once. environments: by the script's name, the environment that has its package."""

    def __init__(self, environments: dict[str, str], url: str, home: Path) -> None:
        self._news: queue.Queue[None] = queue.Queue()
        self.of = {name: ClientScript(name, environment, url, home, self._news) for name, environment in environments.items()}

    def wait(self, arrived: Callable[[], bool], seconds: float = 500.0) -> None:
        """Wait until what the scripts tell makes something true."""
        end = time.monotonic() + seconds
        while not arrived():
            try:
                self._news.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                late = [script.name for script in self.of.values() if not script.ended]
                raise AssertionError(f"{', '.join(late)} took longer than {seconds:g} s") from None

    def stop(self) -> None:
        """End all."""
        for script in self.of.values():
            script.stop()
