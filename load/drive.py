"""Starts a stretch of load in a process of its own and reads what came of it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cores import Meter
from figures import figures
from rows import Row, read_rows
from workload import WorkloadSpec

DRIVER = Path(__file__).resolve().parent / "locust_driver.py"
WARM_REQUESTS = 20
MOST_SECONDS = 4 * 3600.0  # a run of a number of requests that takes longer is ended


class DriveError(Exception):
    """The driver itself failed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One stretch of load: a closed loop of `clients` (rate 0), or an open one of `rate` requests/s.

    requests: how many; None: as many as begin within `seconds` · users: http, bentoml or bentoml-async.
    """

    url: str
    workload: WorkloadSpec = field(default_factory=WorkloadSpec)
    users: str = "http"
    clients: int = 8
    rate: float = 0.0
    arrivals: str = "poisson"
    requests: int | None = None
    seconds: float = 0.0
    timeout_seconds: float = 120.0

    @property
    def offered_seconds(self) -> float:
        """For how long an open loop offers requests; 0 for a closed one."""
        return self.seconds if self.rate else 0.0


@dataclass(frozen=True, slots=True)
class Stretch:
    """What came of a plan. begin: time.time() · generator_cores, server_cores, other_cores: CPU seconds per second."""

    plan: Plan
    rows: list[Row]
    begin: float
    generator_cores: float
    server_cores: float
    other_cores: float

    def told(self, skip: int = 0) -> dict[str, Any]:
        """Sum it up. skip: requests at its begin that do not count. server_cpu_ms is of a request, which a busy machine changes least."""
        cores = {name: round(getattr(self, name), 2) for name in ("generator_cores", "server_cores", "other_cores")}
        told = figures(self.rows[skip:], self.plan.offered_seconds)
        spent = self.server_cores * max((row.done for row in self.rows), default=0.0) / max(1, len(self.rows))
        return told | cores | {"server_cpu_ms": round(1000 * spent, 1) or None}


def open_plan(plan: Plan, rate: float, seconds: float) -> Plan:
    """Offer so many requests/s for so long."""
    return replace(plan, rate=rate, seconds=seconds, requests=None)


def closed_plan(plan: Plan, clients: int, seconds: float) -> Plan:
    """Let so many clients ask for so long."""
    return replace(plan, clients=clients, seconds=seconds, requests=None, rate=0.0)


def fresh(plan: Plan, number: int) -> Plan:
    """Ask for other texts than the stretches of other numbers do."""
    return replace(plan, workload=replace(plan.workload, seed=plan.workload.seed + 1000 * number))


def warm_plan(plan: Plan) -> Plan:
    """Ask a few requests of other texts than any stretch: a new server's first forward passes are slow."""
    return fresh(replace(plan, clients=4, requests=WARM_REQUESTS, seconds=0.0, rate=0.0), -2)


def drive(plan: Plan, processes: Sequence[int] = ()) -> Stretch:
    """Run a plan to its end. processes: the first one of each measured server, for what CPU they take."""
    with tempfile.TemporaryDirectory(prefix="reranker-load-") as folder:
        plan_path, rows_path = Path(folder, "plan.json"), Path(folder, "rows.csv")
        plan_path.write_text(json.dumps(asdict(plan)), encoding="utf-8")
        command = [sys.executable, str(DRIVER), str(plan_path), str(rows_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
            try:
                return _watched(plan, driver, rows_path, processes)
            finally:
                driver.kill()


def _watched(plan: Plan, driver: subprocess.Popen[str], rows_path: Path, processes: Sequence[int]) -> Stretch:
    assert driver.stdout is not None
    driver.stdout.readline()  # it has its clients and begins
    begin, meter = time.time(), Meter(processes)
    try:
        last, _ = driver.communicate(timeout=plan.seconds + 2 * plan.timeout_seconds if plan.seconds else MOST_SECONDS)
    except subprocess.TimeoutExpired:
        raise DriveError("the load did not come to its end in time") from None
    if driver.returncode or not last.strip():
        raise DriveError("the load driver failed; what it said stands above")
    spent = json.loads(last.splitlines()[-1])
    measured, others = meter.read()
    own = spent["cpu_seconds"] / spent["seconds"]
    return Stretch(plan, read_rows(rows_path), begin, own, measured, max(0.0, others - own))
