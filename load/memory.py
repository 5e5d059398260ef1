"""Resident memory of every process of a server, sampled while it is under load."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import psutil

from servers import Server

TAIL = 0.1  # of the time after the warm-in, at both of its ends, is what is compared
Points = list[tuple[float, int]]


def named_processes(server: Server) -> dict[str, psutil.Process]:
    """Find a server's processes: `bentoml` is the first one, then entry-1, scorer-1 and so on, then any other."""
    first = psutil.Process(server.process.pid)
    found = {"bentoml": first}
    for service, name in (("Reranker", "entry"), ("Scorer", "scorer")):
        found |= {f"{name}-{number}": process for number, process in enumerate(server.workers(service), start=1)}
    known = {process.pid for process in found.values()}
    others = [process for process in first.children(recursive=True) if process.pid not in known]
    return found | {f"other-{number}": process for number, process in enumerate(others, start=1)}


@dataclass(slots=True)
class Memory:
    """Samples in the background. samples: seconds since the begin and bytes, by process · gone: processes that ended meanwhile."""

    server: Server
    every_seconds: float
    samples: dict[str, Points] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, args=(named_processes(self.server), time.monotonic()))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread:
            self._thread.join()

    def _run(self, processes: dict[str, psutil.Process], begin: float) -> None:
        while True:
            for name, process in processes.items():
                try:
                    self.samples.setdefault(name, []).append((time.monotonic() - begin, process.memory_info().rss))
                except psutil.NoSuchProcess:
                    self.gone.add(name)
            if self._ended.wait(self.every_seconds):
                return


def growth(points: Sequence[tuple[float, int]], warm_seconds: float) -> float | None:
    """Compare the end with the end of the warm-in: medians of a tenth of the time each; 0.03 is 3 % more. None without samples there."""
    warm = [point for point in points if point[0] >= warm_seconds]
    if not warm:
        return None
    part = TAIL * (warm[-1][0] - warm[0][0])
    before = statistics.median(size for second, size in warm if second <= warm[0][0] + part)
    after = statistics.median(size for second, size in warm if second >= warm[-1][0] - part)
    return after / before - 1
