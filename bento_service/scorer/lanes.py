"""Micro-batches side by side on a CPU, each on a thread of its own, instead of one after the other on all threads together.

Threads that share a pass wait for each other after every operation, so that one that loses its core for a moment stops them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

_Work = TypeVar("_Work")
_Done = TypeVar("_Done")


class Lanes:
    """Threads that compute alone. count: how many."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="lane", initializer=_compute_alone)

    def run(self, work: Callable[[_Work], _Done], parts: Iterable[_Work]) -> list[_Done]:
        """Work on all parts, whoever is free on the next one; what came of each, in order. Raises the first error once all have ended."""
        futures = [self._threads.submit(work, part) for part in parts]
        for future in futures:
            future.exception()
        return [future.result() for future in futures]


def _compute_alone() -> None:
    # Of the thread that calls it alone: what other threads use stays as it is.
    torch.set_num_threads(1)
