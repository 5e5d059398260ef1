"""Which sequences share a forward pass: sorted by length, cut where padding would cost more than a pass of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def plan(lengths: Sequence[int], *, max_tokens: int, overhead_tokens: int) -> list[list[int]]:
    """Split sequences into micro-batches with the least padded work.

    The cost of a micro-batch is rows x longest + overhead_tokens; the best split of the sorted lengths is found by
    dynamic programming (n steps of numpy). max_tokens: rows x longest of one micro-batch, at most; a longer
    sequence rides alone. Returns lists of indexes into `lengths`, each index once, the longest sequences first, so
    that running out of memory shows at once.
    """
    if not lengths:
        return []
    order = np.argsort(np.asarray(lengths), kind="stable")
    ascending = np.asarray(lengths, dtype=np.int64)[order]
    count = len(ascending)
    best = np.zeros(count + 1, dtype=np.int64)
    cut = np.zeros(count + 1, dtype=np.int64)
    for end in range(1, count + 1):
        longest = int(ascending[end - 1])
        first = max(0, end - max(1, max_tokens // max(1, longest)))
        starts = np.arange(first, end)
        costs = best[first:end] + (end - starts) * longest
        choice = int(np.argmin(costs))
        best[end] = costs[choice] + overhead_tokens
        cut[end] = first + choice
    batches = []
    end = count
    while end:
        batches.append(order[cut[end] : end].tolist())
        end = int(cut[end])
    return batches
