"""One stretch of load by locust, in a process of its own: `python load/locust_driver.py PLAN.json ROWS.csv`.

Without gevent's monkey-patching, and away from the process that measures. The last line of its output is JSON: what the driver itself took.
"""

from __future__ import annotations

import os

os.environ["LOCUST_SKIP_MONKEY_PATCH"] = "1"  # before locust is imported

import csv
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import gevent.pool
from locust import User, task
from locust.env import Environment
from locust.exception import StopUser

sys.path.insert(0, str(Path(__file__).resolve().parent))

from arrivals import due_times
from locust_clients import Client, clients
from rows import ANSWERED, Row, write_row
from workload import Request, Workload, WorkloadSpec

MOST_SPAWNED = 100  # users a second, which all wait for the begin
READY_CLIENTS = 16  # of an open loop, made before it begins; more are made when they are needed
MOST_UNDER_WAY = 1_000  # requests of an open loop; the next ones are sent late, which their latency counts


class Drive:
    """What the users of a run share: the requests, the begin, the rows."""

    def __init__(self, plan: dict[str, Any], environment: Environment) -> None:
        self.plan = plan
        self.begun = gevent.event.Event()
        self.make_client = clients(plan["users"], plan["url"], plan["timeout_seconds"])
        self._environment = environment
        self._workload = Workload(WorkloadSpec(**plan["workload"]))
        self._left = plan["requests"]
        self._begin = 0.0

    @property
    def age(self) -> float:
        """Seconds since the begin."""
        return time.perf_counter() - self._begin

    def begin(self) -> None:
        """Let the users go."""
        self._begin = time.perf_counter()
        self.begun.set()

    def take(self) -> Request | None:
        """Return the next request; None after the last one."""
        if self._left is not None:
            if self._left <= 0:
                return None
            self._left -= 1
        elif self.age >= self.plan["seconds"]:
            return None
        return self._workload.take()

    def send(self, client: Client, request: Request, due: float) -> None:
        """Ask and tell locust, with a latency that counts from when the request was due."""
        sent = self.age
        answer = client.post(request)
        row = Row(due, sent, self.age, answer.status, len(request.documents), *answer[1:4], int(request.repeated), answer.error)
        self._environment.events.request.fire(
            request_type="POST",
            name="rerank",
            response_time=1000 * row.latency,
            response_length=0,
            exception=None if answer.status == ANSWERED else RuntimeError(answer.error or answer.status),
            context={"row": row},
        )


class ClosedLoopUser(User):
    """Sends its next request when it has its answer."""

    drive: Drive

    @task
    def ask(self) -> None:
        """Ask until there is nothing left."""
        client = self.drive.make_client()
        self.drive.begun.wait()
        while (request := self.drive.take()) is not None:
            self.drive.send(client, request, self.drive.age)
        client.close()
        raise StopUser


class OpenLoopUser(User):
    """Sends requests when they are due, whatever has become of the earlier ones."""

    drive: Drive

    @task
    def dispatch(self) -> None:
        """Start each one on time, on a connection that is free, or on a new one."""
        drive = self.drive
        plan = drive.plan
        times = due_times(plan["arrivals"], per_second=plan["rate"], seconds=plan["seconds"], seed=plan["workload"]["seed"])
        visitors, free = gevent.pool.Pool(MOST_UNDER_WAY), [drive.make_client() for _ in range(READY_CLIENTS)]
        drive.begun.wait()
        for due in times:
            if (request := drive.take()) is None:
                break
            gevent.sleep(max(0.0, due - drive.age))
            visitors.spawn(self._visit, free, request, due)
        visitors.join()
        for client in free:
            client.close()
        raise StopUser

    def _visit(self, free: list[Client], request: Request, due: float) -> None:
        client = free.pop() if free else self.drive.make_client()
        self.drive.send(client, request, due)
        free.append(client)


def kept(table: Any) -> Any:
    """Return a listener that writes the row of each request."""

    def keep(context: dict[str, Any], **_: object) -> None:
        table.writerow(write_row(context["row"]))

    return keep


def run(plan: dict[str, Any], rows: Iterator[Any] | Any) -> dict[str, float]:
    """Run the plan to its end; CPU seconds that this process took, and for how long."""
    user = OpenLoopUser if plan["rate"] else ClosedLoopUser
    environment = Environment(user_classes=[user])
    environment.events.request.add_listener(kept(csv.writer(rows, lineterminator="\n")))
    user.drive = drive = Drive(plan, environment)
    runner = environment.create_local_runner()
    users = 1 if plan["rate"] else plan["clients"]
    runner.start(users, spawn_rate=min(users, MOST_SPAWNED))
    runner.spawning_greenlet.join()
    print("begin", flush=True)
    before = sum(os.times()[:2])
    drive.begin()
    runner.user_greenlets.join()
    spent = {"cpu_seconds": sum(os.times()[:2]) - before, "seconds": drive.age}
    runner.quit()
    return spent


def main() -> None:
    """Read the plan and run it."""
    plan_path, rows_path = map(Path, sys.argv[1:])
    with rows_path.open("w", encoding="utf-8", newline="") as rows:
        spent = run(json.loads(plan_path.read_text(encoding="utf-8")), rows)
    print(json.dumps(spent), flush=True)
    os._exit(0)  # the event loop of BentoML's client may wait in a thread


if __name__ == "__main__":
    main()
