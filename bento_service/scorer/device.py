"""Which device, and which precision really runs there."""

from __future__ import annotations

import logging
import platform
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

import torch

from bento_service.errors import ModelError
from bento_service.hardware import CUDA_BF16_CAPABILITY, cpu_multiplies_bf16, cpu_multiplies_int8
from bento_service.settings import Int8Kernel, Quantization

# Else it tells of kernels on a hub that it did not find, once it is imported.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
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

    asked: `auto`, or the same as `saved`; `auto` has picked the variant already.
    """
    if saved in ("int8", "nf4"):
        return _quantised(asked, saved, device, int8_kernel)
    native_bf16 = multiplies_bf16(device)
    if saved == "bf16" and not native_bf16:
        effective, lacks = _cast(device)
        reason = f"{_asked(asked, saved)}, but this {device.type} only emulates it: {lacks}"
        return Precision(asked, effective, reason, DTYPES[effective], fell_back=True)
    if saved == "fp16" and device.type == "cpu":
        reason = f"{_asked(asked, saved)}, but CPUs only emulate it: fp32 is faster"
        return Precision(asked, "none", reason, torch.float32, fell_back=True)
    reason = "as asked" if asked != "auto" else f"the fastest saved variant for this {device.type}"
    return Precision(asked, saved, reason, DTYPES[saved])


def _asked(asked: str, saved: str) -> str:
    return f"{saved} is what is saved" if asked == "auto" else f"{saved} was asked for"


def _quantised(asked: str, saved: Literal["int8", "nf4"], device: torch.device, int8_kernel: Int8Kernel) -> Precision:
    effective, _ = _cast(device)
    dtype = DTYPES[effective]
    on_cpu = device.type == "cpu"
    if saved == "int8" and on_cpu and int8_kernel != "bitsandbytes" and cpu_multiplies_int8() and has_onednn():
        reason = "as asked" if asked != "auto" else "the fastest saved variant that this CPU multiplies natively"
        return Precision(asked, "int8", reason, dtype, "onednn")
    if saved == "int8" and on_cpu and int8_kernel != "bitsandbytes":
        lacks = "this CPU has no instructions for int8 (VNNI, AMX), or torch no oneDNN"
    elif saved == "int8" and int8_kernel == "onednn":
        lacks = "oneDNN multiplies it on CPUs alone"
    elif saved == "int8" and asked == "auto":
        # Nothing is lost: it was saved for a CPU, and what it is unpacked to is faster here and as near to full precision.
        reason = f"int8 is what is saved, but on {device.type} it would cost speed: its weights are unpacked (QUANTIZATION=int8 keeps them)"
        return Precision(asked, effective, reason, dtype)
    elif device.type not in ("cpu", "cuda"):
        lacks = f"bitsandbytes does not run on {device.type}"
    elif not has_bitsandbytes():
        lacks = "bitsandbytes is not installed, or cannot be imported"
    else:
        return Precision(
            asked, saved, f"as asked, by bitsandbytes on {device.type}: for memory, not for speed", dtype, "bitsandbytes"
        )
    reason = f"{_asked(asked, saved)}, but {lacks}: its weights are unpacked"
    return Precision(asked, effective, reason, dtype, fell_back=True)


def _cast(device: torch.device) -> tuple[Literal["none", "fp16", "bf16"], str]:
    """The precision to cast full weights to, and why."""
    if multiplies_bf16(device):
        return "bf16", f"{device.type} multiplies bf16 natively"
    if device.type == "cuda":
        return "fp16", "this GPU does not multiply bf16 natively"
    return "none", f"this {device.type} multiplies neither bf16 nor fp16 natively"


def has_bitsandbytes() -> bool:
    """Tell whether it can be imported, which takes a second."""
    try:
        import_module("bitsandbytes")
    except Exception:  # noqa: BLE001  a library built for another machine fails in its own ways
        return False
    return True


def has_onednn() -> bool:
    """Tell whether torch brings the library that multiplies fast on x86 CPUs."""
    return bool(torch.backends.mkldnn.is_available()) and platform.machine() in ("x86_64", "AMD64")  # type: ignore[no-untyped-call]


def multiplies_bf16(device: torch.device) -> bool:
    """Tell whether bf16 products run in hardware (on a CPU as hardware.py says; CUDA from 8.0)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= CUDA_BF16_CAPABILITY
    return device.type == "cpu" and cpu_multiplies_bf16()
