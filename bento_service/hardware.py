"""What this machine multiplies fast, and how busy its GPUs are, found out without torch: the entry service and the start ask it too."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pynvml

from bento_service.settings import Quantization, visible_gpus

_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}
_INT8_FLAGS = {"avx512_vnni", "avx_vnni", "amx_int8"}
CUDA_BF16_CAPABILITY = (8, 0)


@cache
def cpu_flags() -> frozenset[str]:
    """Return the instruction sets that Linux knows of; empty elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    if platform.system() != "Linux" or not cpuinfo.is_file():
        return frozenset()
    for line in cpuinfo.read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def cpu_multiplies_bf16() -> bool:
    """Tell whether bf16 products run in hardware (AVX-512-BF16, AMX, Arm BF16)."""
    return bool(cpu_flags() & _BF16_FLAGS)


def cpu_multiplies_int8() -> bool:
    """Tell whether int8 products run in hardware (VNNI, AMX); without, oneDNN's are slow or overflow."""
    return bool(cpu_flags() & _INT8_FLAGS)


@contextmanager
def _nvml() -> Iterator[None]:
    """Open the driver's library; NVMLError where there is none."""
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def gpu_count() -> int:
    """Count the GPUs a worker may use; 0 where there is no driver, or torch is one for CPUs."""
    if version("torch").endswith("+cpu"):
        return 0
    visible = visible_gpus()
    if visible is not None:
        return len(visible)
    try:
        with _nvml():
            return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return 0


def gpu_multiplies_bf16() -> bool:
    """Tell whether the first GPU is of a generation that does (8.0, Ampere, or later)."""
    try:
        with _nvml():
            return tuple(pynvml.nvmlDeviceGetCudaComputeCapability(_first_gpu())) >= CUDA_BF16_CAPABILITY
    except pynvml.NVMLError:
        return True


def _first_gpu() -> Any:
    """Find the first GPU a worker may use, which CUDA_VISIBLE_DEVICES may name by number or UUID."""
    return _handle((visible_gpus() or ["0"])[0].strip())


def _handle(name: str) -> Any:
    return pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(name)


def fast_precisions(device: str) -> list[Quantization]:
    """Return the saved precisions that pay here, the fastest first; device: as RERANKER_DEVICE.

    On a GPU int8 and nf4 save memory and cost speed, so they are never taken unasked.
    """
    on_cpu = device == "cpu" or (device == "auto" and gpu_count() == 0 and platform.system() != "Darwin")
    if device == "mps" or (not on_cpu and platform.system() == "Darwin"):
        return ["none"]
    if not on_cpu:
        return ["bf16", "fp16", "none"] if gpu_multiplies_bf16() else ["fp16", "none"]
    fast: list[Quantization] = ["int8"] if cpu_multiplies_int8() else []
    return [*fast, "bf16", "none"] if cpu_multiplies_bf16() else [*fast, "none"]


@dataclass(frozen=True, slots=True)
class GpuLoad:
    """How busy a GPU is. busy_ratio: of the time since NVML last looked, at most a second."""

    used_bytes: int
    memory_bytes: int
    busy_ratio: float


def gpu_loads() -> dict[str, GpuLoad]:
    """Ask NVML for the GPUs a worker may use, by NVML's index; empty where there are none. One that fails is left out."""
    loads: dict[str, GpuLoad] = {}
    if not _nvml_stays():
        return loads
    for handle in _visible_handles():
        try:
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            busy = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
            loads[str(pynvml.nvmlDeviceGetIndex(handle))] = GpuLoad(memory.used, memory.total, busy)
        except pynvml.NVMLError:
            continue  # lost, or a slice of one that tells nothing
    return loads


@cache
def _nvml_stays() -> bool:
    """Open the driver's library for good, which takes longer than to ask it; false where there is none."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    return True


def _visible_handles() -> Iterator[Any]:
    names = visible_gpus()
    try:
        if names is None:
            names = [str(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return
    for name in names:
        try:
            yield _handle(name.strip())
        except pynvml.NVMLError:
            continue
