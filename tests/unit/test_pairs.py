"""Pairs and scores survive the hop to the Scorer and back, bit by bit."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest

from bento_service.pairs import Outcome, PairScore, TokenPair


def _pair(count: int, *, types: bool = False, split: int = 0, deadline: float = 1.5, request: int = 9) -> TokenPair:
    generator = np.random.default_rng(count)
    ids = generator.integers(0, 2**32, size=count, dtype=np.uint32)
    type_ids = generator.integers(0, 2, size=count, dtype=np.uint8) if types else None
    return TokenPair(ids, type_ids, split, deadline, request)


@pytest.mark.parametrize("types", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 255, 256, 8192])
def test_a_pair_comes_back_as_it_left(count: int, types: bool) -> None:
    """Ids, type ids, split, deadline and request are the same after pack and unpack."""
    sent = _pair(count, types=types, split=count // 2, deadline=123456.789, request=2**60 + 7)
    got = TokenPair.unpack(sent.pack())
    assert got.ids.dtype == np.uint32
    assert got.ids.tolist() == sent.ids.tolist()
    assert (got.type_ids is None) == (sent.type_ids is None)
    if got.type_ids is not None and sent.type_ids is not None:
        assert got.type_ids.dtype == np.uint8
        assert got.type_ids.tolist() == sent.type_ids.tolist()
    assert (got.split, got.deadline, got.request) == (sent.split, sent.deadline, sent.request)


def test_a_pair_without_tokens_comes_back() -> None:
    """A tokenizer without special tokens makes none of an empty text."""
    got = TokenPair.unpack(_pair(0).pack())
    assert (len(got.ids), got.type_ids) == (0, None)


@pytest.mark.parametrize("deadline", [0.0, -1.0, math.inf])
def test_any_deadline_survives(deadline: float) -> None:
    """Warm-up pairs have no end."""
    assert TokenPair.unpack(_pair(1, deadline=deadline).pack()).deadline == deadline


@pytest.mark.parametrize("request_number", [0, 2**63, 2**64 - 1])
def test_any_request_number_of_64_bits_survives(request_number: int) -> None:
    """Workers start theirs at random."""
    assert TokenPair.unpack(_pair(1, request=request_number).pack()).request == request_number


def test_the_largest_token_id_survives() -> None:
    """Ids are unsigned."""
    pair = TokenPair(np.array([2**32 - 1, 0], np.uint32), None, 0, 0.0, 0)
    assert TokenPair.unpack(pair.pack()).ids.tolist() == [2**32 - 1, 0]


def test_a_pair_is_compact() -> None:
    """Four bytes a token and a header of 25: the hop is paid per byte."""
    assert len(_pair(100).pack()) == 425
    assert len(_pair(100, types=True).pack()) == 525


def test_what_was_unpacked_cannot_be_changed() -> None:
    """The arrays are views into the received bytes."""
    ids = TokenPair.unpack(_pair(3).pack()).ids
    with pytest.raises(ValueError, match="read-only"):
        ids[0] = 1


def test_half_a_pair_is_not_read_as_a_whole_one() -> None:
    """A torn blob is an error, not other tokens."""
    blob = _pair(10).pack()
    with pytest.raises(ValueError, match="buffer"):
        TokenPair.unpack(blob[:-4])
    with pytest.raises(struct.error):
        TokenPair.unpack(blob[:10])


@pytest.mark.parametrize("outcome", list(Outcome))
def test_a_score_comes_back_in_float32(outcome: Outcome) -> None:
    """The raw score is a float32 on the way, whatever became of the pair."""
    got = PairScore.unpack(PairScore(0.1, outcome).pack())
    assert got == PairScore(float(np.float32(0.1)), outcome)


@pytest.mark.parametrize("raw", [-3.4028234663852886e38, -1e-40, 0.0, 1.0, 3.4028234663852886e38])
def test_every_finite_float32_survives_unchanged(raw: float) -> None:
    """Cached and fresh scores must not differ in a bit."""
    exact = float(np.float32(raw))
    assert PairScore.unpack(PairScore(exact, Outcome.SCORED).pack()).raw == exact
