"""Which device, and which precision really runs there."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch

from bento_service.errors import ModelError
from bento_service.hardware import cpu_multiplies_bf16, cpu_multiplies_int8
from bento_service.settings import Int8Kernel, Quantization

_CUDA_BF16_CAPABILITY = (8, 0)
DTYPES = {"none": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
Kernel = Literal["torch", "onednn", "bitsandbytes"]


@dataclass(frozen=True, slots=True)
class Precision:
    """What runs (`effective`) and why, when it is not simply what was asked for.

    dtype: of what flows between the layers, and of the weights unless they are quantised · kernel: whose quantised layers run ·
    fell_back: whether what was asked for cannot run here.
    """

    asked: str
    effective: Quantization
    reason: str
    dtype: torch.dtype
    kernel: Kernel = "torch"
    fell_back: bool = False


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


def choose_precision(asked: str, saved: Quantization, device: torch.device, *, int8_kernel: Int8Kernel = "auto") -> Precision:
    """Pick what really runs of a variant that is saved as `saved`; what cannot run here falls back, and says so.

    asked: `auto`, or the same as `saved`. `auto` has picked the variant already, and may still cast one in full precision.
    """
    if saved in ("int8", "nf4"):
        return _quantised(asked, saved, device, int8_kernel)
    native_bf16 = multiplies_bf16(device)
    if asked == "auto" and saved == "none":
        effective, reason = _cast(device)
        return Precision(asked, effective, reason, DTYPES[effective])
    if saved == "bf16" and not native_bf16:
        reason = f"bf16 was asked for, but this {device.type} only emulates it: fp32 is faster"
        return Precision(asked, "none", reason, torch.float32, fell_back=True)
    if saved == "fp16" and device.type == "cpu":
        reason = "fp16 was asked for, but CPUs only emulate it: fp32 is faster"
        return Precision(asked, "none", reason, torch.float32, fell_back=True)
    reason = "as asked" if asked != "auto" else f"the fastest saved variant for this {device.type}"
    return Precision(asked, saved, reason, DTYPES[saved])


def _quantised(asked: str, saved: Literal["int8", "nf4"], device: torch.device, int8_kernel: Int8Kernel) -> Precision:
    effective, _ = _cast(device)
    dtype = DTYPES[effective]
    if saved == "int8" and device.type == "cpu" and int8_kernel != "bitsandbytes":
        if cpu_multiplies_int8() and has_onednn():
            reason = (
                "as asked" if asked != "auto" else "this CPU multiplies int8 natively, and the scores stay within int8's bound"
            )
            return Precision(asked, "int8", reason, dtype, "onednn")
        lacks = "this CPU has no instructions for int8 (VNNI, AMX)"
    elif device.type not in ("cpu", "cuda"):
        lacks = f"bitsandbytes does not run on {device.type}"
    elif find_spec("bitsandbytes") is None:
        lacks = "bitsandbytes is not installed"
    else:
        return Precision(
            asked, saved, f"as asked, by bitsandbytes on {device.type}: for memory, not for speed", dtype, "bitsandbytes"
        )
    reason = f"{saved} was asked for, but {lacks}: its weights are unpacked"
    return Precision(asked, effective, reason, dtype, fell_back=True)


def _cast(device: torch.device) -> tuple[Literal["none", "fp16", "bf16"], str]:
    """The precision to cast full weights to, and why."""
    if multiplies_bf16(device):
        return "bf16", f"{device.type} multiplies bf16 natively"
    if device.type == "cuda":
        return "fp16", "this GPU does not multiply bf16 natively"
    return "none", f"this {device.type} multiplies neither bf16 nor fp16 natively"


def has_onednn() -> bool:
    """Tell whether torch brings the library that multiplies fast on x86 CPUs."""
    return bool(torch.backends.mkldnn.is_available()) and platform.machine() in ("x86_64", "AMD64")  # type: ignore[no-untyped-call]


def multiplies_bf16(device: torch.device) -> bool:
    """Tell whether bf16 products run in hardware (on a CPU as hardware.py says; CUDA from 8.0)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= _CUDA_BF16_CAPABILITY
    return device.type == "cpu" and cpu_multiplies_bf16()
