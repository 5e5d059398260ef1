"""Linear layers of bitsandbytes around weights that are quantised already: the only room that imports it.

It multiplies int8 row by row and nf4 block by block, so a pair's score does not depend on what shares its batch.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.functional import quantize_4bit
from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit

from bento_service.scorer.quantised import Parts

_MOST = 127
NF4_BLOCK = 64  # weights that share a scale; its kernels want whole blocks in each row


class _FactoredInt8(torch.nn.Module):
    """int8 parts (as int8_linear.Int8Linear takes them) in bitsandbytes' terms, which finds the range of each input row by itself."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        weight, bias = parts["weight"], parts.get("bias")
        self._inner = Linear8bitLt(weight.shape[1], weight.shape[0], bias=bias is not None, has_fp16_weights=False, device="meta")
        self._inner.weight = Int8Params(weight, requires_grad=False, CB=weight, SCB=parts["scale"] * _MOST)
        if bias is not None:
            self._inner.bias = torch.nn.Parameter(bias, requires_grad=False)
        # No buffers: a cast of the model would round the factors.
        self._kept, self._kept_weight = parts.get("kept"), parts.get("kept_weight")
        self._factor = parts["factor"].expand(weight.shape[1]).clone()
        if self._kept is not None:
            self._factor[self._kept] = 0
        self.weight_bytes = self._factor.nbytes + (0 if self._kept_weight is None else self._kept_weight.nbytes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: shape (..., n_in); returns shape (..., n_out) in its dtype."""
        # It works in fp16, and warns at each call that gives it anything else.
        y: torch.Tensor = self._inner((x * self._factor).half()).to(x.dtype)
        if self._kept is None or self._kept_weight is None:
            return y
        return y + torch.nn.functional.linear(x[..., self._kept], self._kept_weight.to(x.dtype))


def make(parts: Parts, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    """Make a layer of int8 or nf4 parts on its device, where it must stay; dtype: of what flows between the layers."""
    parts = {name: tensor if name.startswith("quant_state") else tensor.to(device) for name, tensor in parts.items()}
    if "factor" in parts:
        return _FactoredInt8(parts)
    state: dict[str, Any] = {name: tensor for name, tensor in parts.items() if name not in ("weight", "bias")}
    weight = Params4bit.from_prequantized(parts["weight"], state, device=device)
    n_out, n_in = weight.quant_state.shape
    layer = Linear4bit(n_in, n_out, bias="bias" in parts, compute_dtype=dtype, quant_type="nf4", device="meta")
    weight.module = layer
    layer.weight, layer.quant_state = weight, weight.quant_state
    if "bias" in parts:
        layer.bias = torch.nn.Parameter(parts["bias"].to(dtype), requires_grad=False)
    return layer  # type: ignore[no-any-return]


def quantise_nf4(linear: torch.nn.Linear) -> Parts:
    """Round a full layer to nf4 in blocks of 64 (QLoRA, Dettmers et al. 2023)."""
    packed, state = quantize_4bit(linear.weight.detach().contiguous(), blocksize=NF4_BLOCK, quant_type="nf4")
    bias = {} if linear.bias is None else {"bias": linear.bias.detach()}
    return {"weight": packed, **bias, **state.as_dict(packed=True)}
