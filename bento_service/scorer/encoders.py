"""The model kinds: which sequences must be computed for some pairs, and how their outputs become raw scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from bento_service.pairs import TokenPair
from bento_service.scorer.forward import Forward
from bento_service.scorer.row import Row


class Encoder(Protocol):
    """A model kind. rows(), then forward() on micro-batches of them in any order, then combine().

    packs, weight_bytes: as forward.Forward says.
    """

    packs: bool
    weight_bytes: int

    def rows(self, pairs: Sequence[TokenPair]) -> tuple[list[Row], npt.NDArray[np.int64]]:
        """Return the sequences to compute, each once, and the rows that each pair needs: shape (n_pairs, 1 or 2)."""

    def forward(self, rows: Sequence[Row]) -> torch.Tensor:
        """Run the model once: float32, shape (n_rows, width), in the order of rows."""

    def combine(self, outputs: torch.Tensor, needs: npt.NDArray[np.int64]) -> torch.Tensor:
        """Turn forward outputs into raw scores: float32, shape (n_pairs,), in the order of pairs."""


class CrossEncoder:
    """Sequence classification with one label: a pair is a sequence, its logit the score."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self.packs = forward.packs
        self.weight_bytes = forward.weight_bytes

    def rows(self, pairs: Sequence[TokenPair]) -> tuple[list[Row], npt.NDArray[np.int64]]:
        """Every pair is a row."""
        return [Row(pair.ids, pair.type_ids) for pair in pairs], np.arange(len(pairs))[:, None]

    def forward(self, rows: Sequence[Row]) -> torch.Tensor:
        """Logits: float32, shape (n_rows, 1)."""
        return self._forward(rows)

    def combine(self, outputs: torch.Tensor, needs: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return the logits as they are."""
        return outputs[torch.from_numpy(needs[:, 0]).to(outputs.device), 0]


class BiEncoder:
    """Embeddings: query and document are sequences of their own, the score is their cosine."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self.packs = forward.packs
        self.weight_bytes = forward.weight_bytes

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
        return torch.nn.functional.normalize(self._forward(rows), dim=1)

    def combine(self, outputs: torch.Tensor, needs: npt.NDArray[np.int64]) -> torch.Tensor:
        """Cosines, since the vectors have length 1."""
        places = torch.from_numpy(needs).to(outputs.device)
        return (outputs[places[:, 0]] * outputs[places[:, 1]]).sum(1)
