"""A real Prometheus with the project's own configuration, for tests and for the picture of the dashboard."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import httpx
import yaml

from servers import REPOSITORY, free_port

CONFIGURATION = REPOSITORY / "deploy" / "prometheus"
SCRAPE_SECONDS = 1


class PrometheusServer:
    """One running Prometheus that scrapes each second; the rules are the project's, but that an alert fires after a hundredth of its time.

    targets: `host:port` of the servers it scrapes.
    """

    def __init__(self, targets: Sequence[str]) -> None:
        program = shutil.which(os.environ.get("PROMETHEUS", "prometheus"))
        assert program, "no prometheus: apt-get install prometheus"
        self._temporary = tempfile.TemporaryDirectory(prefix="reranker-prometheus-")
        folder = Path(self._temporary.name)
        _configure(folder, targets)
        self._log_path = folder / "log"
        port = free_port()
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10)
        command = [
            program,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            "--log.level=warn",
        ]
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, f"--web.listen-address=127.0.0.1:{port}"], cwd=folder, stdout=log, stderr=subprocess.STDOUT
            )
        self.started = time.time()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it and remove what it stored; once more does nothing."""
        self._client.close()
        self._process.kill()
        self._process.wait(10)
        self._temporary.cleanup()

    def ask(self, path: str, **parameters: object) -> Any:
        """Return `data` of an answer of /api/v1; a refused query is an error that says why."""
        answer = self._client.get(f"/api/v1/{path}", params={name: str(value) for name, value in parameters.items()}).json()
        assert answer["status"] == "success", f"{parameters}: {answer['error']}"
        return answer["data"]

    def series(self, query: str) -> dict[tuple[tuple[str, str], ...], list[tuple[float, float]]]:
        """Ask for a query's values from the start until now: by sorted labels, (time, value) without NaN."""
        found = self.ask("query_range", query=query, start=self.started, end=time.time(), step=SCRAPE_SECONDS)["result"]
        points = {
            tuple(sorted(each["metric"].items())): [
                (moment, float(value)) for moment, value in each["values"] if not math.isnan(float(value))
            ]
            for each in found
        }
        return {labels: values for labels, values in points.items() if values}

    def wait_for(self, query: str, timeout: float = 30.0) -> None:
        """Wait until a query has an answer; the log is in the error when it never has."""
        end = time.monotonic() + timeout
        while time.monotonic() < end and self._process.poll() is None:
            try:
                if self.ask("query", query=query)["result"]:
                    return
            except (httpx.TransportError, ValueError):  # it starts: no connection yet, or no JSON
                pass
            time.sleep(0.1)
        raise AssertionError(f"no answer to {query}; the log of Prometheus:\n{self._log_path.read_text(errors='replace')}")


def _configure(folder: Path, targets: Sequence[str]) -> None:
    """Write the project's configuration with other targets, and quicker."""
    shutil.copytree(CONFIGURATION, folder, dirs_exist_ok=True)
    config = yaml.safe_load((folder / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": f"{SCRAPE_SECONDS}s"}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (folder / "targets.yml").write_text(yaml.safe_dump([{"targets": list(targets)}]))
    alerts = yaml.safe_load((folder / "rules" / "alerts.yml").read_text())
    for group in alerts["groups"]:
        for rule in group["rules"]:
            rule["for"] = _hundredth(rule["for"])
    (folder / "rules" / "alerts.yml").write_text(yaml.safe_dump(alerts))


def _hundredth(minutes: str) -> str:
    """Divide a time such as `5m` by a hundred."""
    assert minutes.endswith("m"), f"not in minutes: {minutes}"
    return f"{600 * int(minutes[:-1])}ms"
