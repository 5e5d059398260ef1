"""The model kinds: which sequences must be computed for some pairs, and how their outputs become raw scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModel, AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from bento_service.model_info import ModelInfo
from bento_service.pairs import TokenPair
from bento_service.scorer.row import Row
from bento_service.scorer.yes_no import load_yes_no

# Its bars and reports would fill the server's log.
transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()


class Encoder(Protocol):
    """A model kind. rows(), then forward() on micro-batches of them in any order, then combine()."""

    def rows(self, pairs: Sequence[TokenPair]) -> tuple[list[Row], npt.NDArray[np.int64]]:
        """Return the sequences to compute, each once, and the rows that each pair needs: shape (n_pairs, 1 or 2)."""

    def forward(self, rows: Sequence[Row]) -> torch.Tensor:
        """Run the model once: float32, shape (n_rows, width), in the order of rows."""

    def combine(self, outputs: torch.Tensor, needs: npt.NDArray[np.int64]) -> torch.Tensor:
        """Turn forward outputs into raw scores: float32, shape (n_pairs,), in the order of pairs."""


class CrossEncoder:
    """Sequence classification with one label: a pair is a sequence, its logit the score."""

    def __init__(self, model: Any, *, pad_id: int, uses_token_types: bool, device: torch.device) -> None:
        self._model = model
        self._pad_id = pad_id
        self._uses_token_types = uses_token_types
        self._device = device

    def rows(self, pairs: Sequence[TokenPair]) -> tuple[list[Row], npt.NDArray[np.int64]]:
        """Every pair is a row."""
        return [Row(pair.ids, pair.type_ids) for pair in pairs], np.arange(len(pairs))[:, None]

    def forward(self, rows: Sequence[Row]) -> torch.Tensor:
        """Logits: float32, shape (n_rows, 1)."""
        inputs = padded(rows, self._pad_id, uses_token_types=self._uses_token_types, device=self._device)
        logits: torch.Tensor = self._model(**inputs).logits
        return logits.float()

    def combine(self, outputs: torch.Tensor, needs: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return the logits as they are."""
        return outputs[torch.from_numpy(needs[:, 0]).to(outputs.device), 0]


class BiEncoder:
    """Embeddings: query and document are sequences of their own, the score is their cosine."""

    def __init__(self, model: Any, *, pad_id: int, uses_token_types: bool, pooling: str, device: torch.device) -> None:
        self._model = model
        self._pad_id = pad_id
        self._uses_token_types = uses_token_types
        self._pooling = pooling
        self._device = device

    def rows(self, pairs: Sequence[TokenPair]) -> tuple[list[Row], npt.NDArray[np.int64]]:
        """Each distinct text once, so that one query is encoded once per batch and not once per pair."""
        places: dict[bytes, int] = {}
        rows: list[Row] = []
        needs = np.empty((len(pairs), 2), dtype=np.int64)
        for number, pair in enumerate(pairs):
            for side, ids in enumerate((pair.ids[: pair.split], pair.ids[pair.split :])):
                place = places.setdefault(ids.tobytes(), len(rows))
                if place == len(rows):
                    rows.append(Row(ids, None))
                needs[number, side] = place
        return rows, needs

    def forward(self, rows: Sequence[Row]) -> torch.Tensor:
        """Unit vectors: float32, shape (n_rows, hidden size)."""
        inputs = padded(rows, self._pad_id, uses_token_types=self._uses_token_types, device=self._device)
        hidden = self._model(**inputs).last_hidden_state.float()
        mask = inputs.get("attention_mask")
        if self._pooling == "cls":
            pooled = hidden[:, 0]
        elif self._pooling == "max":
            pooled = hidden.amax(1) if mask is None else hidden.masked_fill(mask[:, :, None] == 0, -torch.inf).amax(1)
        elif mask is None:
            pooled = hidden.mean(1)
        else:
            pooled = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        return torch.nn.functional.normalize(pooled, dim=1)

    def combine(self, outputs: torch.Tensor, needs: npt.NDArray[np.int64]) -> torch.Tensor:
        """Cosines, since the vectors have length 1."""
        places = torch.from_numpy(needs).to(outputs.device)
        return (outputs[places[:, 0]] * outputs[places[:, 1]]).sum(1)


def load_encoder(folder: Path, info: ModelInfo, *, dtype: torch.dtype, device: torch.device) -> Encoder:
    """Load the weights of a stored model onto a device; only safetensors are read."""
    if info.kind == "yes-no":
        return load_yes_no(folder, info, dtype=dtype, device=device)
    family = AutoModelForSequenceClassification if info.kind == "cross-encoder" else AutoModel
    model = family.from_pretrained(
        str(folder), dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=info.trust_remote_code
    )
    model = model.to(device).eval()
    pad_id = model.config.pad_token_id or 0
    if info.kind == "cross-encoder":
        return CrossEncoder(model, pad_id=pad_id, uses_token_types=info.uses_token_types, device=device)
    return BiEncoder(model, pad_id=pad_id, uses_token_types=info.uses_token_types, pooling=info.pooling or "mean", device=device)


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
