"""Ranking: activation, order, ties, threshold, top_n."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from bento_service.ranking import Ranked, activate, rank


def test_results_come_highest_first_and_ties_by_index() -> None:
    """Each result keeps the caller's index and gets its rank from 1."""
    assert rank([0.1, 0.9, 0.9, 0.5]) == [Ranked(1, 0.9, 1), Ranked(2, 0.9, 2), Ranked(3, 0.5, 3), Ranked(0, 0.1, 4)]


@pytest.mark.parametrize("top_n", [None, 0, 4, 5, 10**9, 10**400])
def test_no_limit_keeps_all(top_n: int | None) -> None:
    """Null, 0 and more than there are all mean all."""
    assert [each.index for each in rank([1.0, 2.0, 3.0, 4.0], top_n=top_n)] == [3, 2, 1, 0]


def test_top_n_keeps_the_best() -> None:
    """And nothing but the best."""
    assert [each.index for each in rank([1.0, 3.0, 2.0], top_n=2)] == [1, 2]


def test_a_score_at_the_threshold_stays() -> None:
    """Only what is below is dropped."""
    assert [each.score for each in rank([0.2, 0.5, 0.8], score_threshold=0.5)] == [0.8, 0.5]


def test_the_threshold_comes_before_top_n() -> None:
    """Ranks count what is left."""
    assert rank([0.9, 0.1, 0.8], top_n=5, score_threshold=0.85) == [Ranked(0, 0.9, 1)]


def test_a_threshold_of_zero_is_a_threshold() -> None:
    """0 is a score like any other, on the raw scale above all."""
    assert [each.index for each in rank([-1.0, 0.0, 1.0], score_threshold=0.0)] == [2, 1]


def test_nothing_ranks_as_nothing() -> None:
    """No document, or none above the threshold."""
    assert rank([]) == []
    assert rank([0.1], score_threshold=0.2) == []


def test_ranking_agrees_with_a_plain_sort_on_many_lists() -> None:
    """Every index once, scores falling, ties rising by index."""
    generator = np.random.default_rng(7)
    for _ in range(200):
        scores = generator.integers(-3, 4, size=generator.integers(0, 30)).astype(float).tolist()
        ranked = rank(scores)
        assert sorted(each.index for each in ranked) == list(range(len(scores)))
        assert all(scores[each.index] == each.score for each in ranked)
        assert [each.rank for each in ranked] == list(range(1, len(scores) + 1))
        for better, worse in itertools.pairwise(ranked):
            assert (-better.score, better.index) < (-worse.score, worse.index)


@pytest.mark.parametrize("raw", [-1e4, -800.0, -709.0, -30.0, -1.0, 0.0, 1.0, 30.0, 709.0, 800.0, 1e4])
def test_the_sigmoid_is_right_at_any_logit(raw: float) -> None:
    """Neither end overflows."""
    expected = float(1 / (1 + np.exp(-np.longdouble(raw))))
    assert activate(raw, "sigmoid") == pytest.approx(expected, rel=1e-12)


def test_the_sigmoid_keeps_order_and_symmetry() -> None:
    """s(-x) = 1 - s(x), and a higher logit never scores lower."""
    scores = [activate(raw, "sigmoid") for raw in np.linspace(-20, 20, 401).tolist()]
    assert scores == sorted(scores)
    assert scores[0] + scores[-1] == pytest.approx(1.0)
    assert activate(0.0, "sigmoid") == 0.5


@pytest.mark.parametrize(("raw", "score"), [(-1.0, 0.0), (0.0, 0.5), (1.0, 1.0), (1.0000001, 1.0), (-1.0000001, 0.0)])
def test_a_cosine_is_mapped_into_zero_to_one(raw: float, score: float) -> None:
    """Rounding beyond 1 does not leak out."""
    assert activate(raw, "cosine") == score


def test_identity_leaves_the_logit() -> None:
    """For models that declare no activation."""
    assert activate(-3.25, "identity") == -3.25
    assert math.isfinite(activate(-3.25, "identity"))
