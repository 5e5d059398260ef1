"""What a forward pass is to the model kinds: sequences in, one vector for each out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch

from bento_service.scorer.row import Row

Pooling = Literal["mean", "cls", "max"]


class Forward(Protocol):
    """A loaded model. packs: whether sequences of unlike lengths cost no padding · weight_bytes: of its weights, embeddings included."""

    packs: bool
    weight_bytes: int

    def __call__(self, rows: Sequence[Row]) -> torch.Tensor:
        """Run the model once: float32, shape (n_rows, width), in the order of rows; logits of a classifier, else pooled hidden states."""


def weight_bytes(module: torch.nn.Module) -> int:
    """Count the bytes of a module's weights, tied ones once, and of layers that keep theirs out of torch's sight."""
    seen = {tensor.data_ptr(): tensor.nbytes for tensor in (*module.parameters(), *module.buffers())}
    return sum(seen.values()) + sum(getattr(part, "weight_bytes", 0) for part in module.modules())
