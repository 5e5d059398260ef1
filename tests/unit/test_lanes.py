"""Passes side by side: the same scores, in order, whatever fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

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
    """A cross-encoder whose logit is the first token id; remembers who ran which pass, and fails those with the poison in them.

    meet: so many passes must run at once · fits: so many tokens, of the passes that run at once.
    """

    packs = True
    weight_bytes = 0

    def __init__(self, *, meet: int = 0, fits: int = 10_000) -> None:
        self.passes: list[tuple[str, int]] = []
        self.most_under_way = 0
        self._under_way = 0
        self._lock = threading.Lock()
        self._meeting = threading.Barrier(meet) if meet else None
        self._fits = fits

    def rows(self, pairs: Sequence[TokenPair]) -> tuple[list[Row], npt.NDArray[np.int64]]:
        """Every pair is a row."""
        return [Row(pair.ids, None) for pair in pairs], np.arange(len(pairs))[:, None]

    def forward(self, rows: Sequence[Row]) -> torch.Tensor:
        """Give the logits."""
        tokens = sum(len(row.ids) for row in rows)
        self._count(tokens)
        try:
            self.passes.append((threading.current_thread().name, tokens))
            if self._meeting:
                self._meeting.wait(10)
            time.sleep(0.002)
            if self._under_way > self._fits:
                raise MemoryError
            if any(row.ids[0] == POISON for row in rows):
                raise ValueError("poison")
            assert torch.is_inference_mode_enabled()
            return torch.tensor([[float(row.ids[0])] for row in rows])
        finally:
            self._count(-tokens)

    def combine(self, outputs: torch.Tensor, needs: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return the logits as they are."""
        return outputs[torch.from_numpy(needs[:, 0]), 0]

    def _count(self, tokens: int) -> None:
        with self._lock:
            self._under_way += tokens
            self.most_under_way = max(self.most_under_way, self._under_way)


def _pairs(lengths: Sequence[int], *, poisoned: Sequence[int] = ()) -> list[TokenPair]:
    firsts = [POISON if place in poisoned else place for place in range(len(lengths))]
    return [
        TokenPair(np.full(length, first, np.uint32), None, 0, np.inf, 0) for first, length in zip(firsts, lengths, strict=True)
    ]


@pytest.fixture(scope="module")
def lanes() -> Iterator[Lanes]:
    """Two lanes."""
    made = Lanes(LANES)
    yield made
    made.close()


def test_a_lane_computes_alone_and_leaves_other_threads_theirs() -> None:
    """Those that have used torch and those that have not."""
    before, found = torch.get_num_threads(), []
    torch.set_num_threads(3)
    lanes = Lanes(LANES)
    try:
        assert lanes.run(lambda _: torch.get_num_threads(), range(4)) == [1] * 4
        assert torch.get_num_threads() == 3
        newcomer = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        newcomer.start()
        newcomer.join()
        assert found == [3]
    finally:
        lanes.close()
        torch.set_num_threads(before)


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
    """Two at a time, each on another thread."""
    encoder, tally = PackedEncoder(meet=LANES), Tally()
    scores = ScoringEngine(encoder, device=CPU, lanes=lanes).raw_scores(_pairs([100] * 40), tally)
    assert scores.tolist() == list(range(40))
    assert [count for _, count in encoder.passes] == [1000] * 2 * LANES
    assert len({name for name, _ in encoder.passes}) == LANES
    assert (tally.forwards, tally.real_tokens) == (2 * LANES, 4000)


@pytest.mark.parametrize("budget", [512, 1024, 4096])
def test_what_runs_at_once_keeps_to_the_budget(lanes: Lanes, budget: int) -> None:
    """However unlike the lengths are."""
    encoder = PackedEncoder()
    lengths = np.random.default_rng(budget).integers(20, 200, size=100).tolist()
    scores = ScoringEngine(encoder, device=CPU, lanes=lanes, max_batch_tokens=budget).raw_scores(_pairs(lengths))
    assert scores.tolist() == list(range(100))
    assert budget / LANES < encoder.most_under_way <= budget
    assert len({name for name, _ in encoder.passes}) == LANES


@pytest.mark.parametrize(("pairs", "length", "passes"), [(20, 100, 4), (21, 100, 6), (30, 100, 6), (31, 100, 8), (27, 75, 6)])
def test_each_lane_gets_as_many_parts(lanes: Lanes, pairs: int, length: int, passes: int) -> None:
    """Of an odd number of parts one lane would wait for the last, also where only what is left over makes it odd."""
    encoder = PackedEncoder()
    ScoringEngine(encoder, device=CPU, lanes=lanes, max_batch_tokens=1024).raw_scores(_pairs([length] * pairs))
    assert len(encoder.passes) == passes


@pytest.mark.parametrize(
    ("lengths", "budget", "passes"),
    [
        ([256] * 2, 4096, 2),
        ([256] * 4, 4096, 4),
        ([250] * 2, 4096, 1),  # too little for two
        ([4] * 64, 4096, 1),
        ([1024], 4096, 1),
        ([2000, *[100] * 10], 4096, 1),  # one lane would wait for the other
        ([100] * 8, 64, 8),  # no room for two parts at once
        ([300] * 4, 512, 4),
    ],
)
def test_what_is_not_worth_parting_runs_in_the_callers_thread(lanes: Lanes, lengths: list[int], budget: int, passes: int) -> None:
    """As without lanes."""
    encoder = PackedEncoder()
    ScoringEngine(encoder, device=CPU, lanes=lanes, max_batch_tokens=budget).raw_scores(_pairs(lengths))
    assert len(encoder.passes) == passes
    parted = {name for name, _ in encoder.passes} != {threading.current_thread().name}
    assert parted == (lengths in ([256] * 2, [256] * 4))


def test_a_pair_that_fails_fails_alone(lanes: Lanes) -> None:
    """Whatever lane it is in."""
    scores = ScoringEngine(PackedEncoder(), device=CPU, lanes=lanes).raw_scores(_pairs([100] * 20, poisoned=[3, 17]))
    assert np.flatnonzero(np.isnan(scores)).tolist() == [3, 17]
    assert np.delete(scores, [3, 17]).tolist() == [place for place in range(20) if place not in {3, 17}]


class SmallEncoder(PackedEncoder):
    """Has room for passes of 300 tokens."""

    def forward(self, rows: Sequence[Row]) -> torch.Tensor:
        """Give the logits of few."""
        if sum(len(row.ids) for row in rows) > 300:
            raise MemoryError
        return super().forward(rows)


def test_memory_that_runs_out_in_both_lanes_halves_the_budget_once(lanes: Lanes) -> None:
    """Each lane had half of it: 500 tokens at a time, and now 250."""
    engine = ScoringEngine(SmallEncoder(), device=CPU, lanes=lanes)
    assert engine.raw_scores(_pairs([250] * 4)).tolist() == list(range(4))
    assert engine.max_batch_tokens == 500


def test_a_pair_that_fits_alone_is_scored_alone(lanes: Lanes) -> None:
    """Though none fits beside another lane's."""
    encoder, tally = PackedEncoder(fits=400), Tally()
    scores = ScoringEngine(encoder, device=CPU, lanes=lanes).raw_scores(_pairs([400] * 8), tally)
    assert scores.tolist() == list(range(8))
    assert tally.memory_retries
    assert tally.real_tokens == 8 * 400


def test_without_lanes_one_pass_does(lanes: Lanes) -> None:
    """As on a GPU, and for models that are padded."""
    encoder = PackedEncoder()
    ScoringEngine(encoder, device=CPU).raw_scores(_pairs([100] * 20))
    encoder.packs = False
    ScoringEngine(encoder, device=CPU, lanes=lanes).raw_scores(_pairs([100] * 20))
    assert [count for _, count in encoder.passes] == [2000, 2000]
