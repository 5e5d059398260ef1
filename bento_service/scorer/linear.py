"""Which linear layer takes the place of one in a loaded model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bento_service.scorer.dense_linear import OneDnnLinear, PlainLinear, dense_linear
from bento_service.scorer.int8_linear import Int8Linear
from bento_service.scorer.quantised import Parts

Linear = PlainLinear | OneDnnLinear | Int8Linear


class Int8Weights(torch.nn.Module):
    """Stands in a loaded model for a layer whose int8 parts (as Int8Linear takes them) come from a file of their own."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts


def as_linear(module: Any, dtype: torch.dtype) -> Linear:
    """Turn a layer of a loaded model into the one that is fast on its device."""
    if isinstance(module, Int8Weights):
        return Int8Linear(module.parts)
    return dense_linear(module.weight.detach().to(dtype), None if module.bias is None else module.bias.detach().to(dtype))


def joined(modules: Sequence[Any], dtype: torch.dtype) -> Linear:
    """Turn layers that read the same inputs into one, whose outputs are theirs side by side."""
    if all(isinstance(module, Int8Weights) for module in modules):
        own = {name: torch.cat([module.parts[name] for module in modules]) for name in ("weight", "scale", "bias")}
        return Int8Linear({**modules[0].parts, **own})
    weight = torch.cat([module.weight.detach() for module in modules]).to(dtype)
    return dense_linear(weight, torch.cat([module.bias.detach() for module in modules]).to(dtype))
