"""Passes side by side: the same scores, in order, whatever fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from packed_encoder import LANES, PackedEncoder, packed_pairs

from bento_service.errors import DeviceLost
from bento_service.scorer.engine import ScoringEngine
from bento_service.scorer.lanes import Lanes
from bento_service.scorer.row import Row
from bento_service.tally import Tally

CPU = torch.device("cpu")
WAIT_SECONDS = 10


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
        assert [part.result() for part in lanes.begin(lambda _: torch.get_num_threads(), range(4))] == [1] * 4
        assert torch.get_num_threads() == 3
        newcomer = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        newcomer.start()
        newcomer.join()
        assert found == [3]
    finally:
        lanes.close()
        torch.set_num_threads(before)


def test_lanes_have_room_as_soon_as_one_has_nothing_to_do(lanes: Lanes) -> None:
    """Told once, while the last part still runs; and not while both work, though nothing waits any more."""
    told, room, hold = [], threading.Event(), [threading.Event() for _ in range(3)]

    def on_room() -> None:
        told.append(len(lanes.under_way))
        room.set()

    parts = lanes.begin(lambda held: held.wait(WAIT_SECONDS), hold, on_room)
    hold[0].set()
    parts[0].result(WAIT_SECONDS)
    assert not room.wait(0.05)
    hold[1].set()
    assert room.wait(WAIT_SECONDS)
    assert not parts[2].done()
    hold[2].set()
    parts[2].result(WAIT_SECONDS)
    assert told == [1]


def test_all_passes_end_before_an_error_is_raised(lanes: Lanes) -> None:
    """So that none of them runs on for nobody."""
    encoder = LostEncoder()
    engine = ScoringEngine(encoder, device=CPU, lanes=lanes)
    with pytest.raises(DeviceLost):
        engine.score([pair.pack() for pair in packed_pairs([100] * 40)])
    assert len(encoder.passes) == 2 * LANES - 1
    assert not lanes.under_way
    assert engine.busy_seconds == 0


def test_passes_run_side_by_side_and_scores_keep_their_order(lanes: Lanes) -> None:
    """Two at a time, each on another thread."""
    encoder, tally = PackedEncoder(meet=LANES), Tally()
    scores = ScoringEngine(encoder, device=CPU, lanes=lanes).raw_scores(packed_pairs([100] * 40), tally)
    assert scores.tolist() == list(range(40))
    assert [count for _, count in encoder.passes] == [1000] * 2 * LANES
    assert len({name for name, _ in encoder.passes}) == LANES
    assert (tally.forwards, tally.real_tokens) == (2 * LANES, 4000)


@pytest.mark.parametrize("budget", [512, 1024, 4096])
def test_what_runs_at_once_keeps_to_the_budget(lanes: Lanes, budget: int) -> None:
    """However unlike the lengths are."""
    encoder = PackedEncoder()
    lengths = np.random.default_rng(budget).integers(20, 200, size=100).tolist()
    scores = ScoringEngine(encoder, device=CPU, lanes=lanes, max_batch_tokens=budget).raw_scores(packed_pairs(lengths))
    assert scores.tolist() == list(range(100))
    assert budget / LANES < encoder.most_under_way <= budget
    assert len({name for name, _ in encoder.passes}) == LANES


@pytest.mark.parametrize(("pairs", "length", "passes"), [(20, 100, 4), (21, 100, 6), (30, 100, 6), (31, 100, 8), (27, 75, 6)])
def test_each_lane_gets_as_many_parts(lanes: Lanes, pairs: int, length: int, passes: int) -> None:
    """Of an odd number of parts one lane would wait for the last, also where only what is left over makes it odd."""
    encoder = PackedEncoder()
    ScoringEngine(encoder, device=CPU, lanes=lanes, max_batch_tokens=1024).raw_scores(packed_pairs([length] * pairs))
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
    ScoringEngine(encoder, device=CPU, lanes=lanes, max_batch_tokens=budget).raw_scores(packed_pairs(lengths))
    assert len(encoder.passes) == passes
    parted = {name for name, _ in encoder.passes} != {threading.current_thread().name}
    assert parted == (lengths in ([256] * 2, [256] * 4))


def test_a_pair_that_fails_fails_alone(lanes: Lanes) -> None:
    """Whatever lane it is in."""
    scores = ScoringEngine(PackedEncoder(), device=CPU, lanes=lanes).raw_scores(packed_pairs([100] * 20, poisoned=[3, 17]))
    assert np.flatnonzero(np.isnan(scores)).tolist() == [3, 17]
    assert np.delete(scores, [3, 17]).tolist() == [place for place in range(20) if place not in {3, 17}]


class LostEncoder(PackedEncoder):
    """Its first pass loses the device."""

    def forward(self, rows: Sequence[Row]) -> torch.Tensor:
        """Give the logits of the later passes."""
        if rows[0].ids[0] == 0:
            raise torch.AcceleratorError("lost")
        return super().forward(rows)


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
    assert engine.raw_scores(packed_pairs([250] * 4)).tolist() == list(range(4))
    assert engine.passes.max_batch_tokens == 500


def test_a_pair_that_fits_alone_is_scored_alone(lanes: Lanes) -> None:
    """Though none fits beside another lane's."""
    encoder, tally = PackedEncoder(fits=400), Tally()
    scores = ScoringEngine(encoder, device=CPU, lanes=lanes).raw_scores(packed_pairs([400] * 8), tally)
    assert scores.tolist() == list(range(8))
    assert tally.memory_retries
    assert tally.real_tokens == 8 * 400


def test_without_lanes_one_pass_does(lanes: Lanes) -> None:
    """As on a GPU, and for models that are padded."""
    encoder = PackedEncoder()
    ScoringEngine(encoder, device=CPU).raw_scores(packed_pairs([100] * 20))
    encoder.packs = False
    ScoringEngine(encoder, device=CPU, lanes=lanes).raw_scores(packed_pairs([100] * 20))
    assert [count for _, count in encoder.passes] == [2000, 2000]
