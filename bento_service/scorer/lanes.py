"""Parts of a batch side by side on a CPU, each on a thread of its own, instead of one after the other on all threads together.

Threads that share a pass wait for each other after every operation, so that one that loses its core for a moment stops them all (ADR 12).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

_START_SECONDS = 10
_Work = TypeVar("_Work")
_Done = TypeVar("_Done")


class Lanes:
    """Threads that compute alone; close() when done. count: how many. All of them run from the begin on, or there is a RuntimeError."""

    def __init__(self, count: int) -> None:
        self.count = count
        together = torch.get_num_threads()
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="lane", initializer=_compute_alone)
        met = threading.Barrier(count)
        for started in [self._threads.submit(met.wait, _START_SECONDS) for _ in range(count)]:
            started.result()
        # It is each thread's own number, but also the one that threads begin with which are new to torch.
        torch.set_num_threads(together)

    def run(self, work: Callable[[_Work], _Done], parts: Iterable[_Work]) -> list[_Done]:
        """Work on all parts, whoever is free on the next one; what came of each, in order. Raises the first error once all have ended."""
        futures = [self._threads.submit(work, part) for part in parts]
        wait(futures)
        return [future.result() for future in futures]

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()


def _compute_alone() -> None:
    torch.set_num_threads(1)
    # Only a thread that has asked is done with beginning; the first operation would take what others have set meanwhile.
    torch.get_num_threads()
