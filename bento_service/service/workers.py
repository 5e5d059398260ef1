"""Which processes a running server has, and what they are called in metrics."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time

import bentoml
import psutil

ENTRY = "Reranker"
_ENTRY_NAME = "entry-"
_WORKER_MODULE = "_bentoml_impl.worker.service"
_SCORER = "Scorer"
_PARENT = "parent"
_LOOK_SECONDS = 2.0


class Workers:
    """Finds the processes of this server; outside a server there is this one alone."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[str, psutil.Process]] = {}
        self._turn = threading.Lock()

    def processes(self) -> dict[str, psutil.Process]:
        """Find them by name: entry-1, …, scorer-1, …, and parent, which starts the others. A new one's command line is read once."""
        if bentoml.server_context.worker_index is None:
            return {"entry-1": psutil.Process()}
        with self._turn:
            parent = psutil.Process(os.getppid())
            children = {child.pid: child for child in parent.children()}
            self._known = {pid: known for pid, known in self._known.items() if children.get(pid) == known[1]}
            for pid, child in children.items():
                if pid not in self._known and (name := _name(child)):
                    self._known[pid] = (name, child)
            return dict(self._known.values()) | {_PARENT: parent}

    def running(self) -> list[str]:
        """Name the worker processes that run: neither gone nor waiting to be reaped."""
        return [name for name, process in self.processes().items() if name != _PARENT and _runs(process)]

    def entries_run(self) -> bool:
        """Tell whether any entry worker runs."""
        return any(name.startswith(_ENTRY_NAME) for name in self.running())


class Headcount:
    """Looks every two seconds whether all worker processes run, asked or not: a probe reaches each entry worker now and then only.

    expected: how many there should be. Outside a server nobody is ever missing.
    """

    def __init__(self, workers: Workers, expected: int) -> None:
        self._workers = workers
        self._expected = expected
        self._complete_at = time.monotonic()
        self._task: asyncio.Task[None] | None = None

    @property
    def missing_seconds(self) -> float:
        """For how long a worker has been missing, and no more than two seconds where none is; that nobody looks any more counts, too."""
        return time.monotonic() - self._complete_at if self._task else 0.0

    def start(self) -> None:
        """Begin to look; safe to call twice."""
        if self._task is None and bentoml.server_context.worker_index is not None:
            self._task = asyncio.create_task(self._look())

    def stop(self) -> None:
        """End it; safe to call twice."""
        task, self._task = self._task, None
        if task:
            task.cancel()

    async def _look(self) -> None:
        while True:
            if len(self._workers.running()) >= self._expected:
                self._complete_at = time.monotonic()
            await asyncio.sleep(_LOOK_SECONDS)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _name(process: psutil.Process) -> str | None:
    """Name a worker by its command line: its service, and its number among those of its service."""
    try:
        command = process.cmdline()
    except psutil.Error:
        return None
    if _WORKER_MODULE not in command:
        return None
    options = dict(itertools.pairwise(command))
    service = options.get("--service-name", "")
    if service.startswith(_SCORER):
        return f"scorer-{service.removeprefix(_SCORER) or 1}"
    return f"{_ENTRY_NAME}{options.get('--worker-id', 1)}"
