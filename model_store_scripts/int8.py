"""From a float32 model to int8: the range of each linear layer's inputs is measured on texts, and its weights are rounded for it.

Channels with large inputs give half of their size to the weight, which leaves the product as it is (SmoothQuant, Xiao et al. 2022). Behind an
activation a few channels stay as they are instead (LLM.int8(), Dettmers et al. 2022).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bento_service.scorer.packed import FAMILIES
from bento_service.scorer.quantised import Parts

_IN_A_LAYER = re.compile(r"(?:^|\.)(?:\w*layers?|h|blocks)\.\d+\.(.+)")
_STRENGTH = 0.5
_KEPT = 16
_INPUT_LEVELS, _WEIGHT_LEVELS = 255, 127
_SMALLEST = 1e-5  # a channel that is always 0 would divide by it


@dataclass(slots=True)
class _Range:
    """The least and the largest input of each channel that was seen: shape (n_in,)."""

    low: torch.Tensor
    high: torch.Tensor

    def widen(self, x: torch.Tensor) -> None:
        """Take inputs in: shape (n_rows, n_in)."""
        self.low = torch.minimum(self.low, x.amin(0))
        self.high = torch.maximum(self.high, x.amax(0))


def quantise(model: Any, score_texts: Callable[[], object]) -> dict[str, Parts]:
    """Return the int8 parts (as scorer.int8_linear.Int8Linear takes them) of every linear layer within the model's layers, by its name.

    score_texts: runs the model, in float32 on a CPU, on texts like those that it will serve.
    """
    linears = inner_linears(model)
    ranges = _ranges(linears, score_texts)
    made: dict[str, Parts] = {}
    for names in _groups(linears, model.config.model_type):
        weight = torch.cat([linears[name].weight.detach() for name in names])
        made |= {name: _fitted(linears[name], ranges[names[0]], weight) for name in names}
    return made


def inner_linears(model: Any) -> dict[str, torch.nn.Linear]:
    """Return the linear layers within the model's layers by name: embeddings, poolers and heads are none of them."""
    modules = ((name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    return {name: module for name, module in modules if _IN_A_LAYER.search(name)}


def _ranges(linears: Mapping[str, torch.nn.Linear], score_texts: Callable[[], object]) -> dict[str, _Range]:
    ranges = {name: _Range(torch.zeros(module.in_features), torch.zeros(module.in_features)) for name, module in linears.items()}

    def watch(name: str) -> Callable[[Any, Any], None]:
        return lambda _module, inputs: ranges[name].widen(inputs[0].detach().reshape(-1, inputs[0].shape[-1]))

    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in linears.items()]
    try:
        score_texts()
    finally:
        for hook in hooks:
            hook.remove()
    return ranges


def _groups(linears: Mapping[str, Any], model_type: str) -> Iterator[list[str]]:
    """Layers that the packed forward joins share their inputs' factors."""
    family = FAMILIES.get(model_type)
    for name in linears:
        found = _IN_A_LAYER.search(name)
        own = found[1] if found else name
        if family and own in family.projections:
            if own == family.projections[0]:
                layer = name.removesuffix(own)
                yield [layer + projection for projection in family.projections]
        else:
            yield [name]


def _fitted(linear: torch.nn.Linear, seen: _Range, weight: torch.Tensor) -> Parts:
    """Fit one layer; weight: of all layers that share its inputs, shape (any, n_in)."""
    # What comes out of an activation: few channels are far larger than all others, and which ones are large at all depends on the text.
    if linear.in_features > linear.out_features:
        kept = torch.topk(torch.maximum(-seen.low, seen.high), _KEPT).indices.sort().values
        own = linear.weight.detach().clone()
        own[:, kept] = 0
        rest = torch.ones(linear.in_features, dtype=torch.bool).index_fill(0, kept, value=False)
        parts = _parts(own, linear.bias, torch.ones(1), seen.low[rest], seen.high[rest])
        return {**parts, "kept": kept, "kept_weight": linear.weight.detach()[:, kept].to(torch.bfloat16)}
    largest, heaviest = torch.maximum(-seen.low, seen.high).clamp(min=_SMALLEST), weight.abs().amax(0).clamp(min=_SMALLEST)
    shift = largest.pow(_STRENGTH) / heaviest.pow(1 - _STRENGTH)
    return _parts(linear.weight.detach(), linear.bias, shift, seen.low / shift, seen.high / shift)


def _parts(weight: torch.Tensor, bias: torch.Tensor | None, shift: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> Parts:
    """Spread the levels over the range of inputs, each divided by its shift, and round the weight."""
    least = float(low.min())
    step = max((float(high.max()) - least) / _INPUT_LEVELS, _SMALLEST)
    factor = 1 / (shift * step)
    wanted = weight / factor
    scale = wanted.abs().amax(1).clamp(min=1e-12) / _WEIGHT_LEVELS
    parts = {
        "weight": torch.round(wanted / scale[:, None]).to(torch.int8),
        "scale": scale,
        "factor": factor,
        "zero_point": torch.tensor([round(-least / step)], dtype=torch.int32),
    }
    return parts if bias is None else {**parts, "bias": bias.detach()}
