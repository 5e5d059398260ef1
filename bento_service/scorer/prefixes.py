"""What all pairs of a query have in common in a causal model: the prompt up to the document. Which are worth a pass of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

_MOST_SEEN = 256


@dataclass(slots=True, eq=False)
class Prefix:
    """Token ids and, once computed, each layer's keys and values: shape (n_heads, n_tokens, head size)."""

    ids: npt.NDArray[np.uint32]
    layers: list[tuple[torch.Tensor, torch.Tensor]] | None = None


class Prefixes:
    """Remembers the last prefixes, since a big request's pairs come in several batches, of a slow model one by one.

    max_tokens: of the prefixes kept, at most, since each token takes memory in every layer · pass_tokens: a prefix gets a pass of its own
    where that saves more tokens than this. One that comes for a single pair is only computed when it comes again.
    """

    def __init__(self, *, max_tokens: int, pass_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._pass_tokens = pass_tokens
        self._kept: dict[bytes, Prefix] = {}
        self._seen: dict[bytes, None] = {}

    def choose(self, heads: Sequence[npt.NDArray[np.uint32]]) -> list[Prefix | None]:
        """Return the prefix that each pair shares with others; None where the pair is better computed whole."""
        groups: dict[bytes, list[int]] = {}
        for number, ids in enumerate(heads):
            groups.setdefault(ids.tobytes(), []).append(number)
        chosen: list[Prefix | None] = [None] * len(heads)
        room = self._max_tokens
        for key, numbers in sorted(groups.items(), key=lambda group: -len(group[0]) * len(group[1])):
            ids = heads[numbers[0]]
            prefix = self._kept.pop(key, None)
            others = len(numbers) - 1 + (key in self._seen)
            if prefix is None and len(ids) * others > self._pass_tokens:
                prefix = Prefix(ids.copy())
            if prefix is None or len(ids) > room:
                self._see(key)
                continue
            room -= len(ids)
            self._kept[key] = prefix
            for number in numbers:
                chosen[number] = prefix
        self._forget()
        return chosen

    def _see(self, key: bytes) -> None:
        self._seen[key] = None
        if len(self._seen) > _MOST_SEEN:
            del self._seen[next(iter(self._seen))]

    def _forget(self) -> None:
        """Drop the least recently used; those of this batch are the last, and fit."""
        tokens = sum(len(prefix.ids) for prefix in self._kept.values())
        while tokens > self._max_tokens:
            oldest = next(iter(self._kept))
            tokens -= len(self._kept.pop(oldest).ids)
