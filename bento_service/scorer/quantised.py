"""The file of a quantised store entry: for each linear layer its parts, and how to turn them into a full weight again.

int8 parts are what int8_linear.Int8Linear takes. nf4 parts are `weight` (packed), `bias`, and bitsandbytes' own state under its own names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

Parts = dict[str, torch.Tensor]
_STATE = "quant_state.bitsandbytes__nf4"


def flat(parts: Mapping[str, Parts]) -> Parts:
    """Name each part by its layer and itself, as the file does."""
    return {f"{layer}|{name}": tensor.contiguous() for layer, own in parts.items() for name, tensor in own.items()}


def read_parts(path: Path) -> dict[str, Parts]:
    """Read the parts of each layer by its name in the model."""
    parts: dict[str, Parts] = {}
    for key, tensor in load_file(str(path)).items():
        layer, _, name = key.partition("|")
        parts.setdefault(layer, {})[name] = tensor
    return parts


def unpacked(parts: Parts) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the weight, float32, shape (n_out, n_in), and the bias that quantised parts stand for."""
    if _STATE in parts:
        return _unpacked_nf4(parts), parts.get("bias")
    weight = parts["weight"].float() * parts["scale"][:, None] * parts["factor"]
    if "kept" in parts:
        weight[:, parts["kept"]] = parts["kept_weight"].float()
    return weight, parts.get("bias")


def _unpacked_nf4(parts: Parts) -> torch.Tensor:
    state = json.loads(bytes(parts[_STATE].tolist()))
    packed = parts["weight"].flatten()
    codes = torch.stack([packed >> 4, packed & 15], dim=1).flatten().long()
    values = parts["quant_map"][codes].view(-1, state["blocksize"]) * parts["absmax"][:, None]
    return values.flatten()[: torch.Size(state["shape"]).numel()].view(state["shape"])
