"""The engine: which pairs share a forward pass, and what is learnt from it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from bento_service.pairs import Outcome, PairScore, TokenPair
from bento_service.scorer.encoders import BiEncoder
from bento_service.scorer.engine import MAX_BATCH_TOKENS, ScoringEngine
from bento_service.scorer.padded import PaddedForward
from bento_service.scorer.row import Row
from bento_service.tally import Tally

CPU = torch.device("cpu")


class RecordingEncoder:
    """A cross-encoder whose logit is the sum of the ids; remembers the rows of each forward pass."""

    packs = False
    weight_bytes = 0

    def __init__(self) -> None:
        self.forwards: list[list[list[int]]] = []

    def rows(self, pairs: Sequence[TokenPair]) -> tuple[list[Row], npt.NDArray[np.int64]]:
        """Every pair is a row."""
        return [Row(pair.ids, None) for pair in pairs], np.arange(len(pairs))[:, None]

    def forward(self, rows: Sequence[Row]) -> torch.Tensor:
        """Sum the ids."""
        self.forwards.append([row.ids.tolist() for row in rows])
        return torch.tensor([[float(row.ids.sum())] for row in rows])

    def combine(self, outputs: torch.Tensor, needs: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return the logits as they are."""
        return outputs[torch.from_numpy(needs[:, 0]), 0]

    @property
    def padded(self) -> list[int]:
        """Tokens of each forward pass, padding included."""
        return [len(batch) * max(map(len, batch)) for batch in self.forwards]


def _blobs(requests: Sequence[int], *, length: int = 8) -> list[bytes]:
    """Pairs whose ids are all the number of their request."""
    return [TokenPair(np.full(length, request, np.uint32), None, 0, np.inf, request).pack() for request in requests]


def test_without_micro_batches_requests_never_share_a_forward_pass() -> None:
    """However they are mixed in a batch; the scores still come in order."""
    encoder = RecordingEncoder()
    requests = [3, 1, 3, 2, 1, 3]
    packed, tally = ScoringEngine(encoder, device=CPU, micro_batch=False).score(_blobs(requests))
    assert [PairScore.unpack(each) for each in packed] == [PairScore(8.0 * each, Outcome.SCORED) for each in requests]
    assert all(len({row[0] for row in batch}) == 1 for batch in encoder.forwards)
    assert sorted(len(batch) for batch in encoder.forwards) == [1, 2, 3]
    assert tally.forwards == 3


def test_with_micro_batches_requests_share_a_forward_pass() -> None:
    """One pass for all, where the budget allows."""
    encoder = RecordingEncoder()
    ScoringEngine(encoder, device=CPU).score(_blobs([3, 1, 3, 2, 1, 3]))
    assert [len(batch) for batch in encoder.forwards] == [6]


def _scores(engine: ScoringEngine, blobs: list[bytes]) -> list[PairScore]:
    return [PairScore.unpack(score) for score in engine.score(blobs)[0]]


def test_scores_say_when_their_batch_ran() -> None:
    """On the clock that all processes of a machine share, late pairs too."""
    blobs = [TokenPair(np.ones(3, np.uint32), None, 0, deadline, 0).pack() for deadline in (np.inf, 0.0)]
    before = time.monotonic()
    scored, late = _scores(ScoringEngine(RecordingEncoder(), device=CPU), blobs)
    assert before <= scored.begun < scored.ended <= time.monotonic()
    assert (late.outcome, late.begun) == (Outcome.LATE, scored.begun)


def test_a_score_does_not_depend_on_micro_batches() -> None:
    """Nor on the order or the company of pairs."""
    generator = np.random.default_rng(2)
    pairs = [
        TokenPair(generator.integers(0, 99, size=int(generator.integers(1, 90)), dtype=np.uint32), None, 0, np.inf, number % 5)
        for number in range(60)
    ]
    blobs = [pair.pack() for pair in pairs]
    expected = [PairScore(float(pair.ids.sum()), Outcome.SCORED) for pair in pairs]
    for micro_batch in (True, False):
        engine = ScoringEngine(RecordingEncoder(), device=CPU, max_batch_tokens=256, micro_batch=micro_batch)
        assert _scores(engine, blobs) == expected
        assert _scores(engine, blobs[::-1]) == expected[::-1]
        assert [_scores(engine, [blob]) for blob in blobs] == [[score] for score in expected]


def test_a_tally_tells_text_from_padding() -> None:
    """Computed tokens are the rectangles that ran."""
    encoder = RecordingEncoder()
    lengths = [1, 30, 31, 90, 91]
    blobs = [TokenPair(np.ones(length, np.uint32), None, 0, np.inf, 0).pack() for length in lengths]
    _, tally = ScoringEngine(encoder, device=CPU).score(blobs)
    assert tally.real_tokens == sum(lengths)
    assert tally.computed_tokens == sum(encoder.padded) > sum(lengths)
    assert tally.forwards == len(encoder.forwards) > 1
    assert tally.forward_seconds > 0


def test_raw_scores_need_no_deadline() -> None:
    """The golden set is replayed through them: float32, in order."""
    pairs = [TokenPair(np.array([number], np.uint32), None, 0, -1.0, 0) for number in range(5)]
    raw = ScoringEngine(RecordingEncoder(), device=CPU).raw_scores(pairs)
    assert raw.dtype == np.float32
    assert raw.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_the_speed_is_unknown_before_the_first_batch_and_then_measured() -> None:
    """A batch is at least one pair at any speed."""
    engine = ScoringEngine(RecordingEncoder(), device=CPU)
    assert (engine.pairs_per_second, engine.batch_pairs) == (0.0, 1)
    engine.score(_blobs([1] * 16))
    assert engine.pairs_per_second > 0
    assert engine.batch_pairs >= 1


@pytest.mark.parametrize(
    ("batches", "pairs_per_second"), [([(10, 1.0)], 10), ([(10, 1.0)] * 50, 10), ([(90, 1.0), (10, 9.0)], 9.2)]
)
def test_the_speed_follows_the_last_batches_by_their_size(batches: list[tuple[int, float]], pairs_per_second: float) -> None:
    """A quarter of a second of work at that speed is a batch."""
    engine = ScoringEngine(RecordingEncoder(), device=CPU)
    for pairs, seconds in batches:
        engine._learn(pairs, seconds)
    assert engine.pairs_per_second == pytest.approx(pairs_per_second, rel=0.01)
    assert engine.batch_pairs == round(engine.pairs_per_second / 4)


def test_an_old_speed_is_forgotten() -> None:
    """A device that became slow is slow after some twenty batches."""
    engine = ScoringEngine(RecordingEncoder(), device=CPU)
    engine._learn(1000, 1.0)
    for _ in range(40):
        engine._learn(10, 1.0)
    assert engine.pairs_per_second == pytest.approx(10, rel=0.2)


@pytest.mark.parametrize("longest", [16, 256, 512, 8192])
def test_warm_up_runs_the_largest_pass_that_can_come(longest: int) -> None:
    """A full budget of the longest sequences, or one of them where it alone is over the budget; then the speed is known."""
    encoder = RecordingEncoder()
    engine = ScoringEngine(encoder, device=CPU)
    engine.warm_up(longest)
    largest = max(encoder.padded)
    assert max(MAX_BATCH_TOKENS["cpu"] - longest, longest) <= largest <= max(MAX_BATCH_TOKENS["cpu"], longest)
    assert max(len(row) for batch in encoder.forwards for row in batch) == max(longest, 16)
    assert engine.pairs_per_second > 0


class RecordingModel(torch.nn.Module):
    """A transformer that remembers the shapes it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, int]] = []

    def forward(self, input_ids: torch.Tensor, **_: torch.Tensor) -> SimpleNamespace:
        """Give hidden states of width 2."""
        self.shapes.append((input_ids.shape[0], input_ids.shape[1]))
        return SimpleNamespace(last_hidden_state=torch.ones(*input_ids.shape, 2))


def test_warm_up_runs_the_largest_pass_of_a_bi_encoder_too() -> None:
    """Its window is that of one text, so a pair may hold two of them."""
    model = RecordingModel()
    encoder = BiEncoder(PaddedForward(model, pad_id=0, uses_token_types=False, pooling="mean", device=CPU))
    ScoringEngine(encoder, device=CPU).warm_up(256)
    assert max(longest for _, longest in model.shapes) in (255, 256)
    assert MAX_BATCH_TOKENS["cpu"] - 256 <= max(rows * longest for rows, longest in model.shapes) <= MAX_BATCH_TOKENS["cpu"]


def test_the_budget_can_be_set() -> None:
    """Else it is the device's."""
    assert ScoringEngine(RecordingEncoder(), device=CPU).max_batch_tokens == MAX_BATCH_TOKENS["cpu"]
    encoder = RecordingEncoder()
    engine = ScoringEngine(encoder, device=CPU, max_batch_tokens=64)
    engine.score(_blobs([1] * 20, length=16))
    assert encoder.padded == [64] * 5
    assert engine.score([]) == ([], Tally())
