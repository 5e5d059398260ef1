"""An encoder for packed passes, and pairs for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from bento_service.pairs import TokenPair
from bento_service.scorer.row import Row

LANES = 2
POISON = 999


class PackedEncoder:
    """A cross-encoder whose logit is the first token id; remembers who ran which pass, and fails those with the poison in them.

    meet: so many passes must run at once · fits: so many tokens, of the passes that run at once.
    """

    packs = True
    weight_bytes = 0

    def __init__(self, *, meet: int = 0, fits: int = 10_000) -> None:
        self.passes: list[tuple[str, int]] = []
        self.most_under_way = 0
        self._under_way = 0
        self._lock = threading.Lock()
        self._meeting = threading.Barrier(meet) if meet else None
        self._fits = fits

    def rows(self, pairs: Sequence[TokenPair]) -> tuple[list[Row], npt.NDArray[np.int64]]:
        """Every pair is a row."""
        return [Row(pair.ids, None) for pair in pairs], np.arange(len(pairs))[:, None]

    def forward(self, rows: Sequence[Row]) -> torch.Tensor:
        """Give the logits."""
        tokens = sum(len(row.ids) for row in rows)
        self._count(tokens)
        try:
            self.passes.append((threading.current_thread().name, tokens))
            if self._meeting:
                self._meeting.wait(10)
            time.sleep(0.002)
            if self._under_way > self._fits:
                raise MemoryError
            if any(row.ids[0] == POISON for row in rows):
                raise ValueError("poison")
            assert torch.is_inference_mode_enabled()
            return torch.tensor([[float(row.ids[0])] for row in rows])
        finally:
            self._count(-tokens)

    def combine(self, outputs: torch.Tensor, needs: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return the logits as they are."""
        return outputs[torch.from_numpy(needs[:, 0]), 0]

    def _count(self, tokens: int) -> None:
        with self._lock:
            self._under_way += tokens
            self.most_under_way = max(self.most_under_way, self._under_way)


def packed_pairs(lengths: Sequence[int], *, firsts: Sequence[int] | None = None, poisoned: Sequence[int] = ()) -> list[TokenPair]:
    """Pairs of so many tokens, of which the first is what their encoder gives as logit: their place, or as told."""
    firsts = [POISON if place in poisoned else place for place in range(len(lengths))] if firsts is None else firsts
    return [
        TokenPair(np.full(length, first, np.uint32), None, 0, np.inf, 0) for first, length in zip(firsts, lengths, strict=True)
    ]
