"""How many cores the measured servers take, and how many other programs take meanwhile, which a shared machine's figures depend on."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence

import psutil


def machine_seconds() -> float:
    """CPU seconds that all programs, and other machines on the same hardware (steal), have taken."""
    times = psutil.cpu_times()
    resting = ("idle", "iowait", "guest", "guest_nice")  # guest time is user time already
    return sum(value for name, value in times._asdict().items() if name not in resting)


def tree_seconds(processes: Sequence[int]) -> float:
    """CPU seconds that these processes and all below them have taken."""
    spent = 0.0
    for number in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(number)
            for process in (parent, *parent.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    spent += sum(process.cpu_times()[:2])
    return spent


class Meter:
    """Counts from its making on. processes: the first one of each measured server; this process is counted as theirs."""

    def __init__(self, processes: Sequence[int]) -> None:
        self._processes = processes
        self._begin = time.perf_counter()
        self._machine, self._servers, self._own = self._spent()

    def read(self) -> tuple[float, float]:
        """Cores that the servers took since then, and cores that other programs took."""
        seconds = time.perf_counter() - self._begin
        machine, servers, own = self._spent()
        measured = servers - self._servers
        others = machine - self._machine - measured - (own - self._own)
        return measured / seconds, max(0.0, others / seconds)

    def _spent(self) -> tuple[float, float, float]:
        times = os.times()
        return machine_seconds(), tree_seconds(self._processes), times.user + times.system
