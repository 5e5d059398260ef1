"""What the server's processes take of the machine: memory, CPU, GPU; measured when it is asked, and bounded in what that costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from bento_service.hardware import gpu_loads

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


class Machine:
    """Measures processes and GPUs. processes: finds the server's, by name."""

    def __init__(self, processes: Callable[[], Mapping[str, psutil.Process]]) -> None:
        self._processes = processes

    def collect(self) -> Iterator[Metric]:
        """Measure each process and GPU once."""
        resident = GaugeMetricFamily(
            "reranker_process_resident_bytes", "Memory of a process, what it shares with others included.", labels=["process"]
        )
        cpu = CounterMetricFamily("reranker_process_cpu_seconds_total", "CPU time of a process.", labels=["process"])
        for name, process in self._processes().items():
            try:
                with process.oneshot():
                    memory, times = process.memory_info().rss, process.cpu_times()
            except psutil.Error:
                continue  # it ended meanwhile
            resident.add_metric([name], memory)
            cpu.add_metric([name], times.user + times.system)
        yield resident
        yield cpu
        yield GaugeMetricFamily("reranker_memory_limit_bytes", "Memory that the server may take.", value=memory_limit_bytes())
        yield from _gpus()


def _gpus() -> Iterator[Metric]:
    """Tell of the GPUs, where there are any."""
    loads = gpu_loads()
    if not loads:
        return
    used = GaugeMetricFamily("reranker_gpu_memory_used_bytes", "Memory in use on a GPU, by whomever.", labels=["gpu"])
    total = GaugeMetricFamily("reranker_gpu_memory_bytes", "Memory of a GPU.", labels=["gpu"])
    busy = GaugeMetricFamily("reranker_gpu_utilisation_ratio", "Part of the time that a GPU was busy of late.", labels=["gpu"])
    for gpu, load in loads.items():
        used.add_metric([gpu], load.used_bytes)
        total.add_metric([gpu], load.memory_bytes)
        busy.add_metric([gpu], load.busy_ratio)
    yield from (used, total, busy)


def memory_limit_bytes(root: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> float:
    """Find the smallest limit of the cgroups that this process is in, version 2 or 1, or the machine's memory where none is smaller."""
    limits = [psutil.virtual_memory().total]
    for path in _limit_files(root, membership):
        try:
            text = path.read_text().strip()
        except OSError:
            continue  # a container sees its own groups alone
        if text.isdecimal():  # "max" is no limit, and version 1 says a number that no machine has
            limits.append(int(text))
    return float(min(limits))


def _limit_files(root: Path, membership: Path) -> Iterator[Path]:
    """Name the files with the limits of our group and of those above it."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return  # not Linux
    for line in lines:
        number, controllers, group = line.split(":", 2)
        if number == "0":
            top, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            top, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        own = top / group.lstrip("/")
        for folder in (own, *own.parents):
            if folder == top or top in folder.parents:
                yield folder / name
