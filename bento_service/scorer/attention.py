"""Attention among packed sequences: the tokens of a batch lie one after the other, and none is padding.

Sequences of nearly one length are lifted out into a rectangle, and only there a token may look at padding, which weighs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

# The sides of a rectangle are multiples of this, as vector registers like them.
_STEP = 16
# 2 to the power of this, times the tokens of a window, is far inside of what bf16 and fp32 hold, and so is its inverse.
_SAFE_EXPONENT = 80.0
_MOST_LOGITS = 1 << 25  # that lie in memory at once, 64 MB in bf16; halved by sequences, then by heads


@dataclass(frozen=True, slots=True)
class Rectangle:
    """`count` neighbouring sequences of a packed batch, each at most `length` tokens long: the batch's tokens begin .. end.

    places: int64, shape (count x length,), which token stands where, counted from `begin`; a sequence's last one also stands for its padding ·
    real: shape (count, 1, length, 1), 1 for a token and 0 for padding · kept: int64, the places of the tokens. All three are None without padding.
    """

    first: int
    count: int
    length: int
    begin: int
    end: int
    places: torch.Tensor | None = None
    real: torch.Tensor | None = None
    kept: torch.Tensor | None = None


class Packing:
    """Where the sequences of a packed batch lie.

    lengths: sorted, or neighbours are not alike. starts: int64, shape (n_sequences,), the first token of each · offsets: int32,
    shape (n_sequences + 1,), the same and the number of tokens.
    """

    def __init__(self, lengths: Sequence[int], *, device: torch.device, dtype: torch.dtype) -> None:
        self.lengths = np.asarray(lengths, np.int64)
        self._ends = np.cumsum(self.lengths)
        self.longest = int(self.lengths.max())
        self.starts = torch.from_numpy(self._ends - self.lengths).to(device)
        self.offsets = torch.from_numpy(np.append(0, self._ends).astype(np.int32)).to(device)
        self._dtype = dtype
        self.by_exponent = device.type == "cpu" and dtype == torch.bfloat16
        # Only the way through exponents has no use for equal lengths.
        self.rectangles = [] if device.type == "cuda" else list(self._cut(_STEP if self.by_exponent else 1))

    def _cut(self, step: int) -> Iterator[Rectangle]:
        rounded = -(-self.lengths // step) * step
        bounds = [0, *(np.flatnonzero(np.diff(rounded)) + 1).tolist(), len(self.lengths)]
        for first, last in pairwise(bounds):
            sizes, length = self.lengths[first:last], int(rounded[first])
            starts = self._ends[first:last] - sizes
            begin, end = int(starts[0]), int(self._ends[last - 1])
            if (sizes == length).all():
                yield Rectangle(first, last - first, length, begin, end)
                continue
            columns = np.arange(length)
            real = columns < sizes[:, None]
            places = (starts - begin)[:, None] + np.minimum(columns, sizes[:, None] - 1)
            yield Rectangle(
                first, last - first, length, begin, end,
                places=torch.from_numpy(places.ravel()),
                real=torch.from_numpy(real[:, None, :, None]).to(self._dtype),
                kept=torch.from_numpy(np.flatnonzero(real.ravel())),
            )  # fmt: skip


def attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, packing: Packing, heads: int) -> torch.Tensor:
    """Softmax attention within each sequence of a packed batch.

    keys, values: shape (n_tokens, hidden) · queries: the same, or (n_sequences, hidden) where only each sequence's first token asks.
    Returns the shape of queries.
    """
    alone = len(queries) != len(keys) or packing.longest == 1
    if queries.device.type == "cuda":
        return _attend_on_gpu(queries, keys, values, packing, heads, alone=alone)
    out = torch.empty_like(queries, memory_format=torch.contiguous_format)
    for box in packing.rectangles:
        asking = slice(box.first, box.first + box.count) if alone else slice(box.begin, box.end)
        q = queries[asking] if alone or box.places is None else queries[asking].index_select(0, box.places)
        k, v = (_lifted(part, box) for part in (keys, values))
        q, k, v = (part.view(box.count, -1, heads, part.shape[1] // heads).transpose(1, 2) for part in (q, k, v))
        found = (
            _by_exponents(q, k, v, box.real) if packing.by_exponent else torch.nn.functional.scaled_dot_product_attention(q, k, v)
        )
        found = found.transpose(1, 2).reshape(-1, queries.shape[1])
        out[asking] = found if alone or box.kept is None else found.index_select(0, box.kept)
    return out


def _lifted(part: torch.Tensor, box: Rectangle) -> torch.Tensor:
    part = part[box.begin : box.end]
    return part if box.places is None else part.index_select(0, box.places)


def _attend_on_gpu(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, packing: Packing, heads: int, *, alone: bool
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415  registers kernels of a GPU

    q, k, v = (part.view(len(part), heads, -1) for part in (q, k, v))
    asking = torch.arange(len(q) + 1, device=q.device, dtype=torch.int32) if alone else packing.offsets
    found = varlen_attn(q, k, v, asking, packing.offsets, 1 if alone else packing.longest, packing.longest)
    return found.reshape(len(q), -1)  # type: ignore[union-attr]


def _by_exponents(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
    """Softmax attention as two batched products with an exponential between them: shape (n_sequences, n_heads, n_asking, width).

    On a CPU in bf16 it takes a third of the time of torch's fused attention (ADR 9). The largest logit is not taken off first, which
    only large ones need: a sequence that has such is computed in the usual way, whatever shares its batch.
    """
    count, heads, asking, width = q.shape
    length = k.shape[2]
    if count * heads > 1 and count * heads * asking * length > _MOST_LOGITS:
        axis = 0 if count > 1 else 1
        queries, keys, values = (part.tensor_split(2, axis) for part in (q, k, v))
        reals = (real, real) if real is None or axis else real.tensor_split(2, axis)
        return torch.cat([_by_exponents(queries[side], keys[side], values[side], reals[side]) for side in (0, 1)], axis)
    logits = torch.bmm(
        torch.mul(q, math.log2(math.e) / math.sqrt(width)).reshape(count * heads, asking, width),
        k.reshape(count * heads, length, width).transpose(1, 2),
    )
    lowest, highest = torch.aminmax(logits)
    if not max(-lowest, highest) <= _SAFE_EXPONENT:
        if count > 1:
            parts = [
                _by_exponents(q[i : i + 1], k[i : i + 1], v[i : i + 1], None if real is None else real[i : i + 1])
                for i in range(count)
            ]
            return torch.cat(parts)
        mask = None if real is None else real.transpose(2, 3) > 0
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    # A column of ones beside the values gives the sum that the weights are divided by; padding has zeros in both.
    ones = v.new_ones((count, heads, length, 1)) if real is None else real.expand(count, heads, length, 1)
    weighed = torch.cat([v if real is None else v * real, ones], -1).view(count * heads, length, width + 1)
    found = torch.bmm(logits.exp2_(), weighed).view(count, heads, asking, width + 1)
    return found[..., :width] / found[..., width:]
