"""What the server takes of the machine: processes, memory limits as each kind of cgroup says them, GPUs as NVML does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pynvml
import pytest

from bento_service import hardware
from bento_service.machine import Machine, memory_limit_bytes

Samples = dict[tuple[str, ...], float]
MACHINE = psutil.virtual_memory().total
GIB = 1 << 30


def _samples(machine: Machine) -> Samples:
    return {(sample.name, *sample.labels.values()): sample.value for family in machine.collect() for sample in family.samples}


def test_a_process_is_measured_and_one_that_ended_is_left_out() -> None:
    """By the name it is called."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    gone = psutil.Process(ended.pid)
    ended.wait()
    samples = _samples(Machine(lambda: {"entry-1": psutil.Process(), "scorer-1": gone}))
    assert 0.5 < samples["reranker_process_resident_bytes", "entry-1"] / psutil.Process().memory_info().rss < 2
    assert 0 < samples["reranker_process_cpu_seconds_total", "entry-1"] <= sum(os.times()[:2]) + 0.1
    assert not any("scorer-1" in key for key in samples)


@pytest.mark.parametrize(
    ("membership", "files", "limit"),
    [
        ("0::/", {"memory.max": f"{GIB}\n"}, GIB),
        ("0::/", {"memory.max": "max\n"}, MACHINE),
        ("0::/pod/box", {"pod/box/memory.max": "max", "pod/memory.max": f"{2 * GIB}", "memory.max": "max"}, 2 * GIB),
        ("0::/pod/box", {"pod/box/memory.max": f"{GIB}", "pod/memory.max": f"{2 * GIB}"}, GIB),
        ("0::/hidden", {"memory.max": f"{GIB}"}, GIB),
        ("4:memory:/box\n0::/", {"memory/box/memory.limit_in_bytes": f"{GIB}"}, GIB),
        ("4:cpu,memory:/box", {"memory/memory.limit_in_bytes": f"{GIB}"}, GIB),
        ("4:memory:/box", {"memory/box/memory.limit_in_bytes": "9223372036854771712"}, MACHINE),
        ("2:cpu:/box", {"memory/box/memory.limit_in_bytes": f"{GIB}"}, MACHINE),
        ("", {}, MACHINE),
    ],
)
def test_the_memory_limit_is_the_smallest_that_holds(
    tmp_path: Path, membership: str, files: dict[str, str], limit: float
) -> None:
    """Of the group, those above it and the machine, in version 2 and 1; a container sees its own part of the tree alone."""
    (tmp_path / "cgroup").write_text(membership)
    for name, text in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert memory_limit_bytes(tmp_path / "fs", tmp_path / "cgroup") == limit


def test_without_cgroups_the_limit_is_the_machine_s(tmp_path: Path) -> None:
    """On another system there is no /proc."""
    assert memory_limit_bytes(tmp_path, tmp_path / "none") == MACHINE


def test_without_a_driver_there_are_no_gpu_metrics() -> None:
    """Not even empty ones."""
    assert not any("gpu" in key[0] for key in _samples(Machine(dict)))


class _Nvml:
    """NVML's answers for two GPUs, in the types that nvidia-ml-py returns; `lost` ones answer with its error."""

    def __init__(self) -> None:
        self.lost: set[int] = set()

    def handle(self, index: int | str) -> int:
        """Find a GPU by number or UUID."""
        number = ["GPU-aaaa", "GPU-bbbb"].index(index) if isinstance(index, str) else index
        if number > 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return number

    def answer(self, make: Callable[[int], Any]) -> Callable[[int], Any]:
        """Answer for a GPU that is there."""

        def asked(handle: int) -> Any:
            if handle in self.lost:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
            return make(handle)

        return asked


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Nvml]:
    """Stand in for the driver's library, at nvidia-ml-py's functions."""
    stand_in = _Nvml()
    memory = [
        SimpleNamespace(total=80 * GIB, free=60 * GIB, used=20 * GIB),
        SimpleNamespace(total=24 * GIB, free=0, used=24 * GIB),
    ]
    busy = [SimpleNamespace(gpu=75, memory=10), SimpleNamespace(gpu=0, memory=0)]
    for name, function in {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": stand_in.handle,
        "nvmlDeviceGetHandleByUUID": stand_in.handle,
        "nvmlDeviceGetIndex": stand_in.answer(lambda handle: handle),
        "nvmlDeviceGetMemoryInfo": stand_in.answer(memory.__getitem__),
        "nvmlDeviceGetUtilizationRates": stand_in.answer(busy.__getitem__),
    }.items():
        monkeypatch.setattr(pynvml, name, function)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    hardware._nvml_stays.cache_clear()
    yield stand_in
    hardware._nvml_stays.cache_clear()


@pytest.mark.usefixtures("nvml")
def test_each_gpu_says_its_memory_and_how_busy_it_is() -> None:
    """In bytes and as a ratio."""
    samples = _samples(Machine(dict))
    assert samples["reranker_gpu_memory_used_bytes", "0"] == 20 * GIB
    assert samples["reranker_gpu_memory_bytes", "1"] == 24 * GIB
    assert samples["reranker_gpu_utilisation_ratio", "0"] == 0.75


@pytest.mark.usefixtures("nvml")
@pytest.mark.parametrize(("visible", "gpus"), [("1", {"1"}), ("GPU-aaaa", {"0"}), ("", set()), ("1,7", {"1"})])
def test_only_the_gpus_that_workers_may_use_are_told(monkeypatch: pytest.MonkeyPatch, visible: str, gpus: set[str]) -> None:
    """By number or UUID; one that is not there is left out."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert set(hardware.gpu_loads()) == gpus


def test_a_lost_gpu_takes_no_other_metric_with_it(nvml: _Nvml) -> None:
    """The rest is still told."""
    nvml.lost = {0}
    samples = _samples(Machine(lambda: {"entry-1": psutil.Process()}))
    assert "1" in {key[1] for key in samples if key[0] == "reranker_gpu_memory_bytes"}
    assert ("reranker_gpu_memory_bytes", "0") not in samples
    assert ("reranker_process_resident_bytes", "entry-1") in samples
