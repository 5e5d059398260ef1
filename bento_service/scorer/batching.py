"""Which sequences share a forward pass: neighbours in length, so that little or no padding is computed."""

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


def plan_packed(lengths: Sequence[int], *, max_tokens: int, least: int = 1) -> list[list[int]]:
    """Split sequences that need no padding into micro-batches of like size, each of max_tokens at most, if a sequence is not longer itself.

    least: into how many they are cut at least; fewer where some are much longer than the others.

    Returns lists of indexes into `lengths`, each index once, the longest sequences first.
    """
    if not lengths:
        return []
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    wanted = max(least, -(-int(sizes.sum()) // max_tokens))
    share = -(-int(sizes.sum()) // wanted)
    batches: list[list[int]] = [[]]
    filled = 0
    for place in order.tolist():
        size = int(sizes[place])
        if batches[-1] and (filled >= share or filled + size > max_tokens):
            batches.append([])
            filled = 0
        batches[-1].append(place)
        filled += size
    return batches
