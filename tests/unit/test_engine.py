"""The engine: every pair gets an outcome, in order, whatever becomes of its companions."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch

from bento_service.pairs import Outcome, PairScore, TokenPair
from bento_service.scorer.engine import ScoringEngine
from bento_service.scorer.row import Row
from bento_service.tally import Tally

CPU = torch.device("cpu")
POISON = 666


class FakeEncoder:
    """A cross-encoder whose logit is the first token id; fails where it is told to."""

    packs = False
    weight_bytes = 0

    def __init__(
        self, *, memory_tokens: int = 10**9, poison: Callable[[], float] | None = None, error: str | None = None
    ) -> None:
        self._memory_tokens = memory_tokens
        self._poison = poison
        self._error = error
        self.forwards: list[list[list[int]]] = []

    def rows(self, pairs: Sequence[TokenPair]) -> tuple[list[Row], npt.NDArray[np.int64]]:
        """Every pair is a row."""
        return [Row(pair.ids, None) for pair in pairs], np.arange(len(pairs))[:, None]

    def forward(self, rows: Sequence[Row]) -> torch.Tensor:
        """Fail beyond the memory or on the poisoned row, else give the logits."""
        ids = [row.ids.tolist() for row in rows]
        self.forwards.append(ids)
        if len(rows) * max(map(len, ids)) > self._memory_tokens:
            if self._error:
                raise RuntimeError(self._error)
            raise torch.OutOfMemoryError("out of memory")
        logits = [self._poison() if self._poison and row[0] == POISON else float(row[0]) for row in ids]
        return torch.tensor(logits)[:, None]

    def combine(self, outputs: torch.Tensor, needs: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return the logits as they are."""
        return outputs[torch.from_numpy(needs[:, 0]), 0]


class PairedEncoder(FakeEncoder):
    """A bi-encoder of a kind: pairs share rows, and a score is the sum of two."""

    def rows(self, pairs: Sequence[TokenPair]) -> tuple[list[Row], npt.NDArray[np.int64]]:
        """Every id is a row of its own, once."""
        ids = sorted({int(each) for pair in pairs for each in pair.ids})
        return [Row(np.array([each], np.uint32), None) for each in ids], np.array([[ids.index(i) for i in p.ids] for p in pairs])

    def combine(self, outputs: torch.Tensor, needs: npt.NDArray[np.int64]) -> torch.Tensor:
        """Add the two rows."""
        return outputs[torch.from_numpy(needs), 0].sum(1)


def _no_memory() -> float:
    raise torch.OutOfMemoryError("out of memory")


def _blob(first: int, length: int = 1, *, request: int = 0, late: bool = False) -> bytes:
    ids = np.full(length, first, np.uint32)
    return TokenPair(ids, None, 0, time.monotonic() + (-1 if late else 60), request).pack()


def _score(engine: ScoringEngine, blobs: Sequence[bytes]) -> tuple[list[PairScore], Tally]:
    packed, tally = engine.score(blobs)
    return [PairScore.unpack(each) for each in packed], tally


def _scored(*values: float) -> list[PairScore]:
    return [PairScore(value, Outcome.SCORED) for value in values]


def test_scores_come_in_the_order_of_pairs() -> None:
    """However their lengths made them ride."""
    generator = np.random.default_rng(1)
    encoder = FakeEncoder()
    engine = ScoringEngine(encoder, device=CPU, max_batch_tokens=600)
    for count in (1, 2, 50):
        blobs = [_blob(number, int(generator.integers(1, 512))) for number in range(count)]
        scores, tally = _score(engine, blobs)
        assert scores == _scored(*range(count))
        assert (tally.pairs, tally.late_pairs, tally.failed_pairs, tally.memory_retries) == (count, 0, 0, 0)
    assert all(len(batch) == 1 or len(batch) * max(map(len, batch)) <= 600 for batch in encoder.forwards)
    assert len(encoder.forwards[-1]) < 50


def test_no_pair_is_no_work() -> None:
    """Neither a forward pass nor a score."""
    encoder = FakeEncoder()
    assert _score(ScoringEngine(encoder, device=CPU), []) == ([], Tally())
    assert encoder.forwards == []


def test_a_late_pair_is_not_scored() -> None:
    """Its companions are, and it never reaches the model."""
    encoder = FakeEncoder()
    scores, tally = _score(ScoringEngine(encoder, device=CPU), [_blob(1), _blob(2, late=True), _blob(3)])
    assert [score.outcome for score in scores] == [Outcome.SCORED, Outcome.LATE, Outcome.SCORED]
    assert (scores[0].raw, scores[2].raw) == (1.0, 3.0)
    assert sorted(row[0] for batch in encoder.forwards for row in batch) == [1, 3]
    assert (tally.pairs, tally.late_pairs, tally.failed_pairs) == (3, 1, 0)


def test_a_batch_of_late_pairs_costs_no_forward_pass() -> None:
    """And does not count as speed."""
    encoder = FakeEncoder()
    engine = ScoringEngine(encoder, device=CPU)
    scores, tally = _score(engine, [_blob(1, late=True)] * 3)
    assert [score.outcome for score in scores] == [Outcome.LATE] * 3
    assert (encoder.forwards, tally.late_pairs, engine.pairs_per_second) == ([], 3, 0.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_not_finite_fails_its_pair_alone(value: float) -> None:
    """It is never handed out as a score."""
    engine = ScoringEngine(FakeEncoder(poison=lambda: value), device=CPU)
    scores, tally = _score(engine, [_blob(1), _blob(POISON), _blob(3)])
    assert [score.outcome for score in scores] == [Outcome.SCORED, Outcome.FAILED, Outcome.SCORED]
    assert np.isfinite(scores[1].raw)
    assert (tally.failed_pairs, scores[2].raw) == (1, 3.0)


@pytest.mark.parametrize("error", [None, "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"])
@pytest.mark.parametrize("memory_tokens", [4096, 2048, 700, 128])
def test_out_of_memory_is_met_with_halves_down_to_one_pair(memory_tokens: int, error: str | None) -> None:
    """All pairs are scored, in order, and the next batch fits at once."""
    encoder = FakeEncoder(memory_tokens=memory_tokens, error=error)
    engine = ScoringEngine(encoder, device=CPU, max_batch_tokens=8192)
    blobs = [_blob(number, 128) for number in range(64)]
    scores, tally = _score(engine, blobs)
    assert scores == _scored(*range(64))
    assert tally.memory_retries > 0
    assert (tally.real_tokens, tally.computed_tokens) == (64 * 128, 64 * 128)
    assert 128 <= engine.max_batch_tokens <= memory_tokens
    again, tally = _score(engine, blobs)
    assert (again, tally.memory_retries) == (scores, 0)


def test_a_pair_that_alone_needs_too_much_memory_fails_alone() -> None:
    """Found by halving; its companions are scored."""
    engine = ScoringEngine(FakeEncoder(poison=_no_memory), device=CPU)
    blobs = [_blob(POISON if number == 5 else number, 16) for number in range(9)]
    scores, tally = _score(engine, blobs)
    assert [number for number, score in enumerate(scores) if score.outcome is Outcome.FAILED] == [5]
    assert [score.raw for number, score in enumerate(scores) if number != 5] == [0, 1, 2, 3, 4, 6, 7, 8]
    assert tally.failed_pairs == 1


def test_when_every_pair_fails_every_pair_says_so() -> None:
    """Nothing is raised even then."""
    scores, tally = _score(ScoringEngine(FakeEncoder(memory_tokens=0), device=CPU), [_blob(1, 8), _blob(2, 9)])
    assert [score.outcome for score in scores] == [Outcome.FAILED] * 2
    assert (tally.failed_pairs, tally.forwards) == (2, 0)


def test_a_failed_row_fails_just_the_pairs_that_need_it() -> None:
    """Pairs of a bi-encoder share the query's row."""
    engine = ScoringEngine(PairedEncoder(poison=_no_memory), device=CPU)
    blobs = [TokenPair(np.array(ids, np.uint32), None, 1, np.inf, 0).pack() for ids in ([1, 2], [POISON, 2], [1, 3], [4, POISON])]
    scores, _ = _score(engine, blobs)
    assert [score.outcome for score in scores] == [Outcome.SCORED, Outcome.FAILED, Outcome.SCORED, Outcome.FAILED]
    assert (scores[0].raw, scores[2].raw) == (3.0, 4.0)
