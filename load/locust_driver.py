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

POLL_SECONDS = 0.01
MOST_SPAWNED = 100  # users a second, which all wait for the begin
READY_CLIENTS = 16  # of an open loop, made before it begins; more are made when they are needed
MOST_UNDER_WAY = 1_000  # requests of an open loop; the next ones are sent late, which their latency counts


class Drive:
    """What the users of a run share: the requests, the begin, the rows."""

    def __init__(self, plan: dict[str, Any], environment: Environment) -> None:
        self.plan = plan
        self.begun = gevent.event.Event()
        self.make_client = clients(plan["users"], plan["url"], plan["timeout_seconds"])
        self.failure: Exception | None = None
        self._environment = environment
        self._waiting = 0
        self._workload = Workload(WorkloadSpec(**plan["workload"]))
        self._left = plan["requests"]
        self._begin = 0.0

    @property
    def age(self) -> float:
        """Seconds since the begin."""
        return time.perf_counter() - self._begin

    def wait(self) -> None:
        """Wait for the begin, as a user whose connections are ready."""
        self._waiting += 1
        self.begun.wait()

    def begin(self, users: int) -> None:
        """Let the users go once all of them wait."""
        while self._waiting < users and not self.failure:
            gevent.sleep(POLL_SECONDS)
        print("begin", flush=True)
        self._begin = time.perf_counter()
        self.begun.set()

    def take(self) -> Request | None:
        """Return the next request of a closed loop; None after the last one."""
        if self._left is not None:
            self._left -= 1
        over = self.age >= self.plan["seconds"] if self._left is None else self._left < 0
        return None if over else self.next()

    def next(self) -> Request:
        """Return the next request."""
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


class LoadUser(User):
    """A user that ends after its task, also where the task fails, which then fails the run."""

    abstract = True
    drive: Drive

    @task
    def work(self) -> None:
        """Do it once."""
        try:
            self.ask()
        except Exception as error:  # noqa: BLE001  raised again by the one who waits
            self.drive.failure = error
        raise StopUser

    def ask(self) -> None:
        """Send requests until there is nothing left."""
        raise NotImplementedError


class ClosedLoopUser(LoadUser):
    """Sends its next request when it has its answer."""

    def ask(self) -> None:
        """Ask until there is nothing left."""
        client = self.drive.make_client()
        self.drive.wait()
        while (request := self.drive.take()) is not None:
            self.drive.send(client, request, self.drive.age)
        client.close()


class OpenLoopUser(LoadUser):
    """Sends requests when they are due, whatever has become of the earlier ones."""

    def ask(self) -> None:
        """Start each one on time, on a connection that is free, or on a new one."""
        drive, plan = self.drive, self.drive.plan
        times = due_times(plan["arrivals"], per_second=plan["rate"], seconds=plan["seconds"], seed=plan["workload"]["seed"])
        visitors, free = gevent.pool.Pool(MOST_UNDER_WAY), [drive.make_client() for _ in range(READY_CLIENTS)]
        drive.wait()
        for due in times:
            request = drive.next()
            gevent.sleep(max(0.0, due - drive.age))
            visitors.spawn(self._visit, free, request, due)
        visitors.join(raise_error=True)
        for client in free:
            client.close()

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
    before = sum(os.times()[:2])
    drive.begin(users)
    runner.user_greenlets.join()
    if drive.failure:
        raise drive.failure
    spent = {"cpu_seconds": sum(os.times()[:2]) - before, "seconds": drive.age}
    runner.quit()
    return spent


def main() -> int:
    """Read the plan and run it; 1 where it failed, with a line that says why."""
    plan_path, rows_path = map(Path, sys.argv[1:])
    try:
        with rows_path.open("w", encoding="utf-8", newline="") as rows:
            spent = run(json.loads(plan_path.read_text(encoding="utf-8")), rows)
    except Exception as error:  # noqa: BLE001  whatever it is, the process must end, and say so
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    print(json.dumps(spent), flush=True)
    return 0


if __name__ == "__main__":
    os._exit(main())  # the event loop of BentoML's client may wait in a thread
