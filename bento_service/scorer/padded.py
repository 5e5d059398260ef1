"""The forward pass of any architecture that transformers knows: sequences side by side in a rectangle, padded to the longest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from bento_service.scorer.forward import Pooling, weight_bytes
from bento_service.scorer.row import Row


class PaddedForward:
    """As forward.Forward. pooling: of the hidden states; None for a classifier, whose logits are the outputs."""

    packs = False

    def __init__(self, model: Any, *, pad_id: int, uses_token_types: bool, pooling: Pooling | None, device: torch.device) -> None:
        self._model = model
        self._pad_id = pad_id
        self._uses_token_types = uses_token_types
        self._pooling = pooling
        self._device = device
        self.weight_bytes = weight_bytes(model)

    def __call__(self, rows: Sequence[Row]) -> torch.Tensor:
        """As Forward."""
        inputs = padded(rows, self._pad_id, uses_token_types=self._uses_token_types, device=self._device)
        outputs = self._model(**inputs)
        if self._pooling is None:
            logits: torch.Tensor = outputs.logits
            return logits.float()
        hidden = outputs.last_hidden_state.float()
        mask = inputs.get("attention_mask")
        if self._pooling == "cls":
            pooled = hidden[:, 0]
        elif self._pooling == "max":
            pooled = hidden.amax(1) if mask is None else hidden.masked_fill(mask[:, :, None] == 0, -torch.inf).amax(1)
        elif mask is None:
            pooled = hidden.mean(1)
        else:
            pooled = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        result: torch.Tensor = pooled
        return result


def padded(rows: Sequence[Row], pad_id: int, *, uses_token_types: bool, device: torch.device) -> dict[str, torch.Tensor]:
    """Lay rows out as one rectangle, int64, shape (n_rows, longest), with a mask only where a row is shorter.

    Attention without a mask is faster, and equal lengths need none.
    """
    longest = max(len(row.ids) for row in rows)
    ids = np.full((len(rows), longest), pad_id, dtype=np.int64)
    types = np.zeros((len(rows), longest), dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for number, row in enumerate(rows):
        size = len(row.ids)
        ids[number, :size] = row.ids
        mask[number, :size] = 1
        if row.type_ids is not None:
            types[number, :size] = row.type_ids
    inputs = {"input_ids": ids}
    if uses_token_types:
        inputs["token_type_ids"] = types
    if not mask.all():
        inputs["attention_mask"] = mask
    return {name: torch.from_numpy(array).to(device) for name, array in inputs.items()}
