"""Which device, and which precision really runs there."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from bento_service.errors import ModelError
from bento_service.settings import Quantization

_NATIVE_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16", "svebf16"}
_CUDA_BF16_CAPABILITY = (8, 0)
DTYPES = {"none": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Precision:
    """What runs (`effective`) and why, when it is not simply what was asked for."""

    asked: str
    effective: Quantization
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights and of the matrix products."""
        return DTYPES[self.effective]


def choose_device(asked: Literal["auto", "cpu", "cuda", "mps"], index: int) -> torch.device:
    """Pick the device of model worker number `index` (from 0); ModelError if what was asked for is not there."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise ModelError("RERANKER_DEVICE=cuda, but torch sees no CUDA device: use auto or cpu, or install torch for CUDA")
    if asked == "mps" and not torch.backends.mps.is_available():
        raise ModelError("RERANKER_DEVICE=mps, but torch sees no MPS device: use auto or cpu")
    if asked == "cuda" or (asked == "auto" and torch.cuda.is_available()):
        return torch.device("cuda", index % torch.cuda.device_count())
    if asked == "mps" or (asked == "auto" and torch.backends.mps.is_available()):
        return torch.device("mps")
    return torch.device("cpu")


def choose_precision(asked: Literal["auto", "none", "fp16", "bf16"], device: torch.device) -> Precision:
    """Pick what really runs; a precision that the device only emulates falls back to fp32, and says so."""
    native_bf16 = multiplies_bf16(device)
    if asked == "auto":
        if native_bf16:
            return Precision(asked, "bf16", f"{device.type} multiplies bf16 natively")
        if device.type == "cuda":
            return Precision(asked, "fp16", "this GPU does not multiply bf16 natively")
        return Precision(asked, "none", f"this {device.type} multiplies neither bf16 nor fp16 natively")
    if asked == "bf16" and not native_bf16:
        return Precision(asked, "none", f"bf16 was asked for, but this {device.type} only emulates it: fp32 is faster")
    if asked == "fp16" and device.type == "cpu":
        return Precision(asked, "none", "fp16 was asked for, but CPUs only emulate it: fp32 is faster")
    return Precision(asked, asked, "as asked")


def multiplies_bf16(device: torch.device) -> bool:
    """Tell whether bf16 products run in hardware (AVX-512-BF16, AMX, Arm BF16; CUDA from 8.0)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= _CUDA_BF16_CAPABILITY
    return device.type == "cpu" and bool(_cpu_flags() & _NATIVE_BF16_FLAGS)


def _cpu_flags() -> set[str]:
    cpuinfo = Path("/proc/cpuinfo")
    if platform.system() != "Linux" or not cpuinfo.is_file():
        return set()
    for line in cpuinfo.read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()
