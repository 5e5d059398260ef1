"""Windows: the best of a long document's windows is its score."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bento_service.pairs import KnownScore, Outcome, PairScore, TokenPair
from bento_service.tokenizer import TokenizedPair
from bento_service.windows import Windows

MODEL, OTHER_MODEL = bytes(32), b"\1" * 32
SPANS = ((0, 10), (8, 20), (18, 25))


def _windows(count: int = 3, spans: tuple[tuple[int, int], ...] | None = SPANS) -> Windows:
    tokens = TokenPair(np.zeros(4, np.uint32), None, 0, 0.0, 0)
    return Windows(TokenizedPair((tokens,) * count, 4 * count, truncated=False, spans=spans))


def _score(raw: float, outcome: Outcome = Outcome.SCORED, fingerprint: bytes = MODEL) -> PairScore:
    return PairScore(raw, outcome, fingerprint)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_best_window_counts_in_whatever_order_they_come(order: tuple[int, ...]) -> None:
    """Only the last one to come makes the pair whole; of equal ones the first in the document counts."""
    for raws, best in (((0.5, 2.0, -1.0), 1), ((-3.0, -1.0, -1.0), 1), ((7.0, 7.0, 7.0), 0)):
        windows = _windows()
        parts = windows.parts()
        whole = [parts[number].add(_score(raws[number])) for number in order]
        assert whole == [None, None, windows]
        assert (windows.failed, windows.fingerprint) == (False, MODEL.hex())
        assert windows.known == KnownScore(raws[best], 12, truncated=False, span=SPANS[best])


def test_a_pair_of_one_window_is_whole_at_once() -> None:
    """As most are; without a span where nobody asked for windows."""
    windows = _windows(1, spans=None)
    assert windows.parts()[0].add(_score(0.25)) is windows
    assert windows.known == KnownScore(0.25, 4, truncated=False)


@pytest.mark.parametrize("bad", [_score(1.0, Outcome.FAILED), _score(float("nan"))], ids=["failed", "nan"])
def test_a_window_without_a_score_fails_the_pair_once(bad: PairScore) -> None:
    """At once, since the other windows cannot mend it; what comes after it says nothing more."""
    windows = _windows()
    first, second, third = windows.parts()
    assert [first.add(_score(1.0)), second.add(bad), third.add(_score(2.0))] == [None, windows, None]
    assert windows.failed


def test_windows_of_several_models_name_none() -> None:
    """A Scorer may come back as another model between two windows: such a score is answered, but not remembered."""
    windows = _windows(2)
    for part, fingerprint in zip(windows.parts(), (MODEL, OTHER_MODEL), strict=True):
        part.add(_score(1.0, fingerprint=fingerprint))
    assert windows.fingerprint is None
