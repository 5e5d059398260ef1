"""Batching: every sequence once, within the budget, and never more padded work than simpler ways to cut."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from bento_service.scorer.batching import plan

CASES = 150


def _cost(batches: Sequence[Sequence[int]], lengths: Sequence[int], overhead: int) -> int:
    return sum(len(batch) * max(lengths[place] for place in batch) + overhead for batch in batches)


def _random_cases(seed: int, *, most: int = 80) -> Iterator[tuple[list[int], int, int]]:
    """Lengths of several shapes, with a budget and an overhead each."""
    generator = np.random.default_rng(seed)
    for number in range(CASES):
        count = int(generator.integers(1, most))
        shapes = (
            generator.integers(1, 513, size=count),
            np.clip(generator.lognormal(4, 1, size=count), 1, 512).astype(int),
            np.full(count, generator.integers(1, 513)),
            generator.choice([3, 512], size=count),
        )
        budget = int(generator.choice([1, 64, 511, 512, 4096, 65536]))
        yield shapes[number % 4].tolist(), budget, int(generator.choice([0, 1, 48, 2048]))


def test_every_sequence_is_in_one_batch() -> None:
    """None is lost, none is computed twice, no batch is empty."""
    for lengths, budget, overhead in _random_cases(1):
        batches = plan(lengths, max_tokens=budget, overhead_tokens=overhead)
        assert sorted(itertools.chain.from_iterable(batches)) == list(range(len(lengths)))
        assert all(batches)


def test_no_batch_is_over_the_budget_but_a_single_long_sequence() -> None:
    """Rows times longest counts, padding included."""
    for lengths, budget, overhead in _random_cases(2):
        for batch in plan(lengths, max_tokens=budget, overhead_tokens=overhead):
            padded = len(batch) * max(lengths[place] for place in batch)
            assert padded <= budget or len(batch) == 1


def test_the_longest_sequences_come_first() -> None:
    """Running out of memory shows at once, and lengths never overlap between batches."""
    for lengths, budget, overhead in _random_cases(3):
        batches = plan(lengths, max_tokens=budget, overhead_tokens=overhead)
        for earlier, later in itertools.pairwise(batches):
            assert min(lengths[place] for place in earlier) >= max(lengths[place] for place in later)


def _naive(order: Sequence[int], lengths: Sequence[int], size: int, budget: int) -> list[list[int]]:
    """Cut into chunks of `size`, and sooner where the budget ends."""
    batches: list[list[int]] = []
    for place in order:
        longer = [*batches[-1], place] if batches and len(batches[-1]) < size else []
        if longer and len(longer) * max(lengths[each] for each in longer) <= budget:
            batches[-1] = longer
        else:
            batches.append([place])
    return batches


def test_no_naive_chunking_is_cheaper() -> None:
    """Of any size, in order of arrival or sorted either way."""
    for lengths, budget, overhead in _random_cases(4):
        cost = _cost(plan(lengths, max_tokens=budget, overhead_tokens=overhead), lengths, overhead)
        ascending = sorted(range(len(lengths)), key=lengths.__getitem__)
        for order in (list(range(len(lengths))), ascending, ascending[::-1]):
            for size in (1, 2, 8, 32, len(lengths)):
                assert cost <= _cost(_naive(order, lengths, size, budget), lengths, overhead)


def test_no_cut_of_the_sorted_lengths_is_cheaper() -> None:
    """Compared with all of them, for up to nine sequences."""
    for lengths, budget, overhead in _random_cases(5, most=10):
        cost = _cost(plan(lengths, max_tokens=budget, overhead_tokens=overhead), lengths, overhead)
        ascending = sorted(range(len(lengths)), key=lengths.__getitem__)
        for cuts in itertools.product([False, True], repeat=len(lengths) - 1):
            edges = [0, *(place for place, cut in enumerate(cuts, start=1) if cut), len(lengths)]
            batches = [ascending[begin:end] for begin, end in itertools.pairwise(edges)]
            if all(len(batch) == 1 or len(batch) * lengths[batch[-1]] <= budget for batch in batches):
                assert cost <= _cost(batches, lengths, overhead)


def test_the_order_of_arrival_does_not_change_the_work() -> None:
    """A shuffled batch costs the same."""
    generator = np.random.default_rng(6)
    for lengths, budget, overhead in _random_cases(6):
        shuffled = generator.permutation(lengths).tolist()
        costs = [_cost(plan(each, max_tokens=budget, overhead_tokens=overhead), each, overhead) for each in (lengths, shuffled)]
        assert costs[0] == costs[1]


@pytest.mark.parametrize(
    ("lengths", "budget", "overhead", "batches"),
    [
        ([], 64, 1, []),
        ([7], 64, 1, [[0]]),
        ([900], 64, 1, [[0]]),
        ([8, 8, 8, 8], 32, 1, [[0, 1, 2, 3]]),
        ([8, 8, 8, 8], 31, 1, [[1, 2, 3], [0]]),
        ([100, 1, 100, 1], 10_000, 1, [[0, 2], [1, 3]]),
        ([100, 99, 98], 10_000, 48, [[2, 1, 0]]),
        ([100, 50], 10_000, 0, [[0], [1]]),
    ],
)
def test_plans_that_can_be_checked_by_hand(lengths: list[int], budget: int, overhead: int, batches: list[list[int]]) -> None:
    """A pass of its own pays where it saves more padding than it costs."""
    found = plan(lengths, max_tokens=budget, overhead_tokens=overhead)
    assert _cost(found, lengths, overhead) == _cost(batches, lengths, overhead)
    assert len(found) == len(batches)


def test_an_empty_sequence_does_not_stop_its_companions() -> None:
    """A tokenizer without special tokens makes no token of an empty document."""
    assert sorted(itertools.chain.from_iterable(plan([0, 5, 0, 3], max_tokens=64, overhead_tokens=48))) == [0, 1, 2, 3]


def test_places_are_plain_integers() -> None:
    """They index lists, and numpy's would slow that down."""
    assert all(type(place) is int for batch in plan([3, 1, 2], max_tokens=4, overhead_tokens=0) for place in batch)
