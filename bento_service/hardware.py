"""What this machine multiplies fast, found out without torch: the entry service and the start ask it too."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
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
    first = (visible_gpus() or ["0"])[0].strip()
    return pynvml.nvmlDeviceGetHandleByIndex(int(first)) if first.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(first)


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
