"""The worker processes beside this one, as their common parent knows them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import bentoml
import psutil

_WORKER_MODULE = "_bentoml_impl.worker.service"
_SERVICE_OPTION = "--service-name"
ENTRY = "Reranker"


def running_workers() -> Iterator[str]:
    """Go through the parent's worker processes that run: the name of each one's service."""
    for child in psutil.Process(os.getppid()).children():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            command = child.cmdline()
            if child.status() != psutil.STATUS_ZOMBIE and _WORKER_MODULE in command and _SERVICE_OPTION in command:
                yield command[command.index(_SERVICE_OPTION) + 1]


def all_siblings_run(expected: int) -> bool:
    """Tell whether the parent has as many worker processes as it should; true where there is no parent."""
    return bentoml.server_context.worker_index is None or sum(1 for _ in running_workers()) >= expected


def entry_workers_run() -> bool:
    """Tell whether any entry worker runs."""
    return ENTRY in running_workers()
