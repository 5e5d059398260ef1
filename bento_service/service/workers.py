"""Which processes a running server has, and what they are called in metrics."""

from __future__ import annotations

import itertools
import os
import threading

import bentoml
import psutil

WORKER_MODULE = "_bentoml_impl.worker.service"
_SCORER = "Scorer"


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
            return dict(self._known.values()) | {"parent": parent}


def _name(process: psutil.Process) -> str | None:
    """Name a worker by its command line: its service, and its number among those of its service."""
    try:
        command = process.cmdline()
    except psutil.Error:
        return None
    if WORKER_MODULE not in command:
        return None
    options = dict(itertools.pairwise(command))
    service = options.get("--service-name", "")
    if service.startswith(_SCORER):
        return f"scorer-{service.removeprefix(_SCORER) or 1}"
    return f"entry-{options.get('--worker-id', 1)}"
