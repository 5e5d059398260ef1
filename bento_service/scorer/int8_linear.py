"""Linear layers in int8 on a CPU, by oneDNN, with ranges of the inputs that were measured when the model was saved.

So a pair's score does not depend on what shares its batch, as it would with ranges taken from the batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from bento_service.scorer.dense_linear import ROWS, Gelu, bytes_of, dense_linear
from bento_service.scorer.quantised import Parts, unpacked

_LEVELS = 255


class Int8Linear(torch.nn.Module):
    """One layer; forward() as dense_linear says.

    parts: `weight` int8, shape (n_out, n_in) · `scale` float32, shape (n_out,) · `bias` float32, shape (n_out,), or absent ·
    `factor` float32, shape (n_in,) or (1,), and `zero_point` int32, shape (1,): an input becomes round(input x factor) + zero point,
    as uint8; the product of these and the weight, times the scale, is the result. `kept` int64, shape (n_kept,), or absent: the inputs
    whose values are far larger than the others'; their weights are zeros there, and full in `kept_weight`, shape (n_out, n_kept).
    """

    def __init__(self, parts: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.weight_bytes = bytes_of(*parts.values())
        self.weight = parts["weight"].new_empty(0)  # some models ask for its dtype
        self._scale = parts["scale"]
        self._zero_points = torch.zeros(len(self._scale), dtype=torch.int32)
        self._bias = parts.get("bias")
        self.factor = parts["factor"]
        self.zero_point = int(parts["zero_point"])
        # Half a level more, because the cast to uint8 cuts off. In one dimension, or bf16 would win the addition, and it has no halves beyond 128.
        self._offset = torch.tensor([self.zero_point + 0.5])
        self._weight = torch.ops.onednn.qlinear_prepack(parts["weight"].contiguous(), [ROWS, parts["weight"].shape[1]])
        self.kept = parts.get("kept")
        self._kept_weight = parts.get("kept_weight")

    def forward(self, x: torch.Tensor, gelu: Gelu | None = None) -> torch.Tensor:
        """As dense_linear says."""
        if self.kept is None:
            return self.multiply(self.levels(x), x.dtype, gelu)
        y = self.multiply(self.levels(x), x.dtype) + self.multiply_kept(x[..., self.kept])
        return y if gelu is None else torch.nn.functional.gelu(y, approximate=gelu)

    def levels(self, x: torch.Tensor) -> torch.Tensor:
        """Quantise inputs: uint8."""
        return torch.addcmul(self._offset, x, self.factor).clamp_(0, _LEVELS).to(torch.uint8)

    def multiply(
        self, levels: torch.Tensor, dtype: torch.dtype, gelu: Gelu | None = None, following: Int8Linear | None = None
    ) -> torch.Tensor:
        """Multiply quantised inputs; the result is of a dtype, or quantised as inputs of the layer that follows (which has one factor)."""
        name, how = ("none", "") if gelu is None else ("gelu", gelu)
        scale, zero_point = (1.0, 0) if following is None else (1 / float(following.factor), following.zero_point)
        y: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            levels, 1.0, self.zero_point, self._weight, self._scale, self._zero_points, self._bias,
            scale, zero_point, dtype if following is None else torch.uint8, name, [], how,
        )  # fmt: skip
        return y

    def multiply_kept(self, values: torch.Tensor) -> torch.Tensor:
        """What the inputs that are kept full, shape (..., n_kept), add to the result."""
        if self._kept_weight is None:
            return values.new_zeros(())
        return torch.nn.functional.linear(values, self._kept_weight.to(values.dtype))


class Int8FeedForward(torch.nn.Module):
    """Two layers with GELU between them, which hand on nothing larger than uint8 but for the few inputs that are kept full."""

    def __init__(self, up: Parts, down: Parts, dtype: torch.dtype) -> None:
        super().__init__()
        self._up, self._down = Int8Linear(up), Int8Linear(down)
        self.weight_bytes = self._up.weight_bytes + self._down.weight_bytes
        self._up_kept = None
        if "kept" in down:
            weight, bias = unpacked(up)
            kept = down["kept"]
            self._up_kept = dense_linear(weight[kept].to(dtype), None if bias is None else bias[kept].to(dtype))
            self.weight_bytes += self._up_kept.weight_bytes

    def forward(self, x: torch.Tensor, gelu: Gelu) -> torch.Tensor:
        """x: shape (n_tokens, n_in); returns the same shape and dtype."""
        between = self._up.multiply(self._up.levels(x), x.dtype, gelu, self._down)
        y = self._down.multiply(between, x.dtype)
        return y if self._up_kept is None else y.add_(self._down.multiply_kept(self._up_kept(x, gelu)))
