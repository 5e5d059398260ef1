"""Passes side by side: the same scores, in order, whatever fails."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch

from bento_service.pairs import TokenPair
from bento_service.scorer.engine import ScoringEngine
from bento_service.scorer.lanes import Lanes
from bento_service.scorer.row import Row
from bento_service.tally import Tally

CPU = torch.device("cpu")
LANES = 2
POISON = 999


class PackedEncoder:
    """A cross-encoder whose logit is the first token id; remembers who ran which pass, and fails those with the poison in them."""

    packs = True
    weight_bytes = 0

    def __init__(self, *, meet: int = 0, fits: int = 10_000) -> None:
        self.passes: list[tuple[str, int]] = []
        self._meeting = threading.Barrier(meet) if meet else None
        self._fits = fits

    def rows(self, pairs: Sequence[TokenPair]) -> tuple[list[Row], npt.NDArray[np.int64]]:
        """Every pair is a row."""
        return [Row(pair.ids, None) for pair in pairs], np.arange(len(pairs))[:, None]

    def forward(self, rows: Sequence[Row]) -> torch.Tensor:
        """Give the logits."""
        self.passes.append((threading.current_thread().name, sum(len(row.ids) for row in rows)))
        if self._meeting:
            self._meeting.wait(10)
        if sum(len(row.ids) for row in rows) > self._fits:
            raise MemoryError
        if any(row.ids[0] == POISON for row in rows):
            raise ValueError("poison")
        assert torch.is_inference_mode_enabled()
        return torch.tensor([[float(row.ids[0])] for row in rows])

    def combine(self, outputs: torch.Tensor, needs: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return the logits as they are."""
        return outputs[torch.from_numpy(needs[:, 0]), 0]


def _pairs(lengths: Sequence[int], *, poisoned: Sequence[int] = ()) -> list[TokenPair]:
    firsts = [POISON if place in poisoned else place for place in range(len(lengths))]
    return [
        TokenPair(np.full(length, first, np.uint32), None, 0, np.inf, 0) for first, length in zip(firsts, lengths, strict=True)
    ]


@pytest.fixture(scope="module")
def lanes() -> Lanes:
    """Two lanes."""
    return Lanes(LANES)


def test_a_lane_computes_alone_and_leaves_other_threads_theirs(lanes: Lanes) -> None:
    """Torch's number of threads is each thread's own."""
    before = torch.get_num_threads()
    assert lanes.run(lambda _: torch.get_num_threads(), range(4)) == [1] * 4
    assert torch.get_num_threads() == before


def test_all_parts_end_before_an_error_is_raised(lanes: Lanes) -> None:
    """So that no pass of one batch runs beside the next."""
    ended = []

    def work(part: int) -> None:
        if part == 0:
            raise ValueError("the first")
        ended.append(part)

    with pytest.raises(ValueError, match="the first"):
        lanes.run(work, range(5))
    assert sorted(ended) == [1, 2, 3, 4]


def test_passes_run_side_by_side_and_scores_keep_their_order(lanes: Lanes) -> None:
    """Two at a time, each on another thread, of about the same number of tokens, and none over its share of the budget."""
    encoder = PackedEncoder(meet=LANES)
    lengths = np.random.default_rng(1).integers(20, 200, size=40).tolist()
    tally = Tally()
    scores = ScoringEngine(encoder, device=CPU, lanes=lanes).raw_scores(_pairs(lengths), tally)
    assert scores.tolist() == list(range(40))
    assert len({name for name, _ in encoder.passes}) == LANES
    tokens = [count for _, count in encoder.passes]
    assert max(tokens) - min(tokens) < 2 * 200
    assert (tally.forwards, tally.real_tokens) == (len(tokens), sum(lengths))
    assert all(count <= 4096 // LANES for count in tokens)


@pytest.mark.parametrize(("lengths", "passes"), [([250] * 2, 1), ([256] * 2, 2), ([256] * 4, 4), ([1024], 1), ([4] * 64, 1)])
def test_small_work_stays_together(lanes: Lanes, lengths: list[int], passes: int) -> None:
    """A pass costs as much as some tens of tokens, and one sequence is not cut."""
    encoder = PackedEncoder()
    ScoringEngine(encoder, device=CPU, lanes=lanes).raw_scores(_pairs(lengths))
    assert len(encoder.passes) == passes
    assert (encoder.passes[0][0] == threading.current_thread().name) == (passes == 1)


def test_a_pair_that_fails_fails_alone(lanes: Lanes) -> None:
    """Whatever lane it is in."""
    scores = ScoringEngine(PackedEncoder(), device=CPU, lanes=lanes).raw_scores(_pairs([100] * 20, poisoned=[3, 17]))
    assert np.flatnonzero(np.isnan(scores)).tolist() == [3, 17]
    assert np.delete(scores, [3, 17]).tolist() == [place for place in range(20) if place not in {3, 17}]


def test_memory_that_runs_out_in_both_lanes_halves_the_budget_once(lanes: Lanes) -> None:
    """Each lane had half of it: 500 tokens at a time, and now 250."""
    encoder = PackedEncoder(fits=400)
    engine = ScoringEngine(encoder, device=CPU, lanes=lanes)
    assert not np.isnan(engine.raw_scores(_pairs([100] * 20))).any()
    assert engine.max_batch_tokens == 500


def test_a_budget_of_one_token_is_kept_to(lanes: Lanes) -> None:
    """Each sequence then is a pass of its own."""
    encoder = PackedEncoder()
    ScoringEngine(encoder, device=CPU, lanes=lanes, max_batch_tokens=1).raw_scores(_pairs([100] * 8))
    assert [count for _, count in encoder.passes] == [100] * 8


def test_without_lanes_one_pass_does(lanes: Lanes) -> None:
    """As on a GPU, and for models that are padded."""
    encoder = PackedEncoder()
    ScoringEngine(encoder, device=CPU).raw_scores(_pairs([100] * 20))
    encoder.packs = False
    ScoringEngine(encoder, device=CPU, lanes=lanes).raw_scores(_pairs([100] * 20))
    assert [count for _, count in encoder.passes] == [2000, 2000]
