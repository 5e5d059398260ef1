"""Parts of a batch side by side on a CPU, each on a thread of its own, instead of one after the other on all threads together.

Threads that share a pass wait for each other after every operation, so that one that loses its core for a moment stops them all (ADR 12).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

_START_SECONDS = 10
_Work = TypeVar("_Work")
_Done = TypeVar("_Done")


class Lanes:
    """Threads that compute alone; close() when done. count: how many. All of them run from the begin on, or there is a RuntimeError."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._under_way: set[Future[Any]] = set()
        self._on_room: Callable[[], None] | None = None
        self._lock = threading.Lock()
        together = torch.get_num_threads()
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="lane", initializer=_compute_alone)
        met = threading.Barrier(count)
        for started in [self._threads.submit(met.wait, _START_SECONDS) for _ in range(count)]:
            started.result()
        # It is each thread's own number, but also the one that threads begin with which are new to torch.
        torch.set_num_threads(together)

    @property
    def under_way(self) -> list[Future[Any]]:
        """Parts that have not ended, of whatever batch."""
        with self._lock:
            return list(self._under_way)

    def begin(
        self, work: Callable[[_Work], _Done], parts: Iterable[_Work], on_room: Callable[[], None] | None = None
    ) -> list[Future[_Done]]:
        """Let whoever is free work on the next part.

        on_room: called once, by a lane, as soon as one has nothing to do while others still work, or all have ended.
        """
        with self._lock:
            self._on_room = on_room
            begun = [self._threads.submit(work, part) for part in parts]
            self._under_way.update(begun)
        for part in begun:
            part.add_done_callback(self._ended)
        return begun

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()

    def _ended(self, part: Future[Any]) -> None:
        with self._lock:
            self._under_way.discard(part)
            if len(self._under_way) >= self.count:
                return
            on_room, self._on_room = self._on_room, None
        if on_room:
            on_room()


def _compute_alone() -> None:
    torch.set_num_threads(1)
    # Only a thread that has asked is done with beginning; the first operation would take what others have set meanwhile.
    torch.get_num_threads()
