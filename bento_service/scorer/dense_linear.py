"""Linear layers with full weights (fp32, bf16, fp16), as modules that take the place of torch's own.

Each one's forward() takes x of shape (..., n_in) and returns shape (..., n_out) in the dtype of x, after GELU if asked:
`none` is the exact one, `tanh` its approximation.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch

from bento_service.scorer.device import has_onednn

Gelu = Literal["none", "tanh"]
ROWS = 1024  # the number of tokens that oneDNN's layout is made for; any other works too


class PlainLinear(torch.nn.Module):
    """torch's own product: on GPUs, and on CPUs without oneDNN."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight_bytes = bytes_of(weight, bias)
        self._weight, self._bias = weight, bias

    def forward(self, x: torch.Tensor, gelu: Gelu | None = None) -> torch.Tensor:
        """As the module says."""
        y = torch.nn.functional.linear(x, self._weight, self._bias)
        return y if gelu is None else torch.nn.functional.gelu(y, approximate=gelu)


class OneDnnLinear(torch.nn.Module):
    """fp32 or bf16 on a CPU, with the weight laid out once for oneDNN: half of the time of torch's own fp32 product on AMD (ADR 9)."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight_bytes = bytes_of(weight, bias)
        self.weight = weight.new_empty(0)  # some models ask for its dtype
        self._bias = bias
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)  # noqa: SLF001  operators have no other names

    def forward(self, x: torch.Tensor, gelu: Gelu | None = None) -> torch.Tensor:
        """As the module says."""
        name, how = ("none", "") if gelu is None else ("gelu", gelu)
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, name, [], how)  # noqa: SLF001
        return y


def dense_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> PlainLinear | OneDnnLinear:
    """Make the layer that is fast on the weight's device."""
    fast = weight.device.type == "cpu" and has_onednn() and weight.dtype in _onednn_dtypes()
    return OneDnnLinear(weight, bias) if fast else PlainLinear(weight, bias)


@cache
def _onednn_dtypes() -> set[torch.dtype]:
    """Name what oneDNN multiplies on this CPU, be it by emulating bf16; fp16 is never fast on one."""
    return {torch.float32, torch.bfloat16} if torch.ops.mkldnn._is_mkldnn_bf16_supported() else {torch.float32}  # noqa: SLF001


def bytes_of(*tensors: torch.Tensor | None) -> int:
    """Add up what tensors take."""
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
