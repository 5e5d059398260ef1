"""Which prefixes are computed apart: those that save more than a pass costs, within a bound, the last ones kept."""

from __future__ import annotations

import numpy as np

from bento_service.scorer.prefixes import Prefix, Prefixes


def head(number: int, size: int = 10) -> np.ndarray:
    """Make the token ids of a prefix."""
    return np.full(size, number, np.uint32)


def chosen(prefixes: Prefixes, *heads: np.ndarray) -> list[Prefix | None]:
    """Choose for one batch, and hold that what is chosen is the pair's own."""
    found = prefixes.choose(heads)
    assert len(found) == len(heads)
    assert all(prefix is None or prefix.ids.tolist() == ids.tolist() for prefix, ids in zip(found, heads, strict=True))
    return found


def test_pairs_of_a_query_share_one_prefix_and_others_none() -> None:
    """Each query that several pairs have, one; a query of one pair is computed with it."""
    first, lone, again, second, too = chosen(Prefixes(max_tokens=100, pass_tokens=5), head(1), head(2), head(1), head(3), head(3))
    assert first is again is not None
    assert second is too is not first
    assert lone is None


def test_a_prefix_must_save_more_than_its_pass_costs() -> None:
    """Ten tokens for each pair beyond the first."""
    assert chosen(Prefixes(max_tokens=100, pass_tokens=20), *[head(1)] * 3) == [None] * 3
    assert None not in chosen(Prefixes(max_tokens=100, pass_tokens=20), *[head(1)] * 4)


def test_a_prefix_that_comes_again_is_computed_then_and_kept() -> None:
    """A slow model gets a request's pairs one by one."""
    prefixes = Prefixes(max_tokens=100, pass_tokens=5)
    assert chosen(prefixes, head(1)) == [None]
    [second] = chosen(prefixes, head(1))
    [third] = chosen(prefixes, head(1))
    assert second is third is not None


def test_tokens_are_bounded_and_the_oldest_go_first() -> None:
    """What a batch itself needs stays; what does not fit is computed whole."""
    prefixes = Prefixes(max_tokens=25, pass_tokens=5)
    old = chosen(prefixes, *[head(1)] * 2)[0]
    kept = chosen(prefixes, *[head(2)] * 2)[0]
    assert chosen(prefixes, head(1)) == [old]  # used again, so 2 is the oldest now
    assert chosen(prefixes, *[head(3)] * 2)[0] is not None
    assert chosen(prefixes, head(1)) == [old]
    assert chosen(prefixes, head(2)) == [None]
    assert kept is not None
    assert sum(len(prefix.ids) for prefix in prefixes._kept.values()) <= 25
    assert chosen(prefixes, *[head(4, 26)] * 9) == [None] * 9
    many = chosen(prefixes, *[head(number) for number in range(10, 20) for _ in range(2)])
    assert len({id(prefix) for prefix in many if prefix}) == 2


def test_what_was_seen_is_forgotten_at_last() -> None:
    """Callers decide how many queries there are, so their number is bounded."""
    prefixes = Prefixes(max_tokens=100, pass_tokens=5)
    for number in range(1000):
        assert chosen(prefixes, head(number)) == [None]
    assert len(prefixes._seen) <= 256
    assert chosen(prefixes, head(0)) == [None]
