"""How fast a model's matrix products alone are on this CPU, in torch's own layers: what nothing that computes all of them by these kernels can pass."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Sequence

import torch

from shapes import SHAPES

ROWS = (256, 512, 1024, 2048)
ROUNDS = 15


def ceilings(shape: str = "minilm-l6") -> dict[str, float]:
    """Tokens per second of the encoder's linear layers, one after the other, by precision; the best of several block sizes."""
    from transformers import AutoModel

    layers = [module for name, module in AutoModel.from_config(SHAPES[shape]()).named_modules() if _counts(name, module)]
    widths = [layer.in_features for layer in layers]
    found = {}
    for label, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        found[label] = _best([layer.to(dtype) for layer in layers], widths, dtype)
    found["int8"] = _best([_dynamic_int8(layer.float()) for layer in layers], widths, torch.float32)
    return found


def _counts(name: str, module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear) and "pooler" not in name


def _dynamic_int8(layer: torch.nn.Module) -> torch.nn.Module:
    """Let torch quantise it, per channel, with ranges taken from each batch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is going to move to another library
        how = {torch.nn.Linear: torch.ao.quantization.per_channel_dynamic_qconfig}
        quantised: torch.nn.Module = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(layer), how, dtype=torch.qint8)
    return quantised


def _best(layers: Sequence[torch.nn.Module], widths: Sequence[int], dtype: torch.dtype) -> float:
    return max(rows / _seconds(layers, widths, rows, dtype) for rows in ROWS)


@torch.inference_mode()
def _seconds(layers: Sequence[torch.nn.Module], widths: Sequence[int], rows: int, dtype: torch.dtype) -> float:
    inputs = {width: torch.randn(rows, width, dtype=dtype) for width in widths}
    times = []
    for _ in range(ROUNDS + 3):
        begin = time.perf_counter()
        for layer, width in zip(layers, widths, strict=True):
            layer(inputs[width])
        times.append(time.perf_counter() - begin)
    return statistics.median(times[3:])
