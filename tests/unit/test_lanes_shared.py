"""Two batches in the lanes: the next one begins beside the last passes of the one before it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest
import torch
from packed_encoder import LANES, PackedEncoder, packed_pairs

from bento_service.pairs import PairScore
from bento_service.scorer.engine import Running, ScoringEngine
from bento_service.scorer.lanes import Lanes
from bento_service.scorer.row import Row

CPU = torch.device("cpu")
WAIT_SECONDS = 10
HELD = 5_000


class HeldEncoder(PackedEncoder):
    """Holds the passes that have the held id in them until they may go on."""

    def __init__(self, *, fits: int = 10_000) -> None:
        super().__init__(fits=fits)
        self.go_on = threading.Event()

    def forward(self, rows: Sequence[Row]) -> torch.Tensor:
        """Give the logits, in time or late."""
        if any(row.ids[0] == HELD for row in rows):
            self.go_on.wait(WAIT_SECONDS)
        return super().forward(rows)


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    """Two lanes, which are waited for at the end."""
    made = Lanes(LANES)
    yield made
    made.close()


@pytest.fixture
def encoder() -> Iterator[HeldEncoder]:
    """An encoder that holds nobody for ever."""
    made = HeldEncoder()
    yield made
    made.go_on.set()


def _begin(engine: ScoringEngine, firsts: Sequence[int], length: int = 100) -> tuple[Running, threading.Event]:
    room = threading.Event()
    return engine.begin([pair.pack() for pair in packed_pairs([length] * len(firsts), firsts=firsts)], room.set), room


def _scores(engine: ScoringEngine, running: Running) -> list[float]:
    wait(running.before, WAIT_SECONDS)
    answers, _ = running.answer or engine.finish(running)
    return [PairScore.unpack(answer).raw for answer in answers]


FIRSTS = [HELD, *range(39)]


def test_the_next_batch_computes_beside_the_last_pass_of_another(encoder: HeldEncoder, lanes: Lanes) -> None:
    """It may even end before it; each gets its own scores."""
    engine = ScoringEngine(encoder, device=CPU, lanes=lanes)
    first, room = _begin(engine, FIRSTS)
    assert room.wait(WAIT_SECONDS)
    assert [part.done() for part in first.before].count(False) == 1
    second, second_room = _begin(engine, range(100, 140))
    assert _scores(engine, second) == list(range(100, 140))
    assert second_room.wait(WAIT_SECONDS)
    assert [part.done() for part in first.before].count(False) == 1
    encoder.go_on.set()
    assert _scores(engine, first) == FIRSTS
    assert len(encoder.passes) == 4 * LANES


def test_no_second_counts_twice(encoder: HeldEncoder, lanes: Lanes) -> None:
    """The speed is what both together made of the time; the hung-watch sees the older one."""
    engine = ScoringEngine(encoder, device=CPU, lanes=lanes)
    begin = time.monotonic()
    first, room = _begin(engine, FIRSTS)
    assert room.wait(WAIT_SECONDS)
    time.sleep(0.05)
    second, _ = _begin(engine, range(100, 140))
    assert engine.busy_seconds >= 0.05
    tallies = [engine.finish(second)[1]]
    time.sleep(0.05)
    assert engine.busy_seconds >= 0.1
    encoder.go_on.set()
    tallies.append(engine.finish(first)[1])
    seconds = sum(tally.forward_seconds for tally in tallies)
    assert 0.1 <= seconds <= time.monotonic() - begin
    assert engine.pairs_per_second == pytest.approx(80 / seconds, rel=0.3)
    assert engine.busy_seconds == 0


def test_the_smallest_work_has_a_lane_for_itself_beside_another_batch(encoder: HeldEncoder, lanes: Lanes) -> None:
    """All threads together would wait for that one's last pass."""
    engine = ScoringEngine(encoder, device=CPU, lanes=lanes)
    first, room = _begin(engine, FIRSTS)
    assert room.wait(WAIT_SECONDS)
    second, _ = _begin(engine, [7], length=10)
    assert _scores(engine, second) == [7]
    assert encoder.passes[-1][0].startswith("lane")
    encoder.go_on.set()
    assert _scores(engine, first) == FIRSTS
    third, _ = _begin(engine, [8], length=10)
    assert third.answer is not None
    assert encoder.passes[-1][0] == threading.current_thread().name


def test_what_needs_all_threads_begins_when_the_lanes_are_done(encoder: HeldEncoder, lanes: Lanes) -> None:
    """Known by what is before it, so that the thread that computes it can end the other batch first."""
    engine = ScoringEngine(encoder, device=CPU, lanes=lanes, max_batch_tokens=1024)
    first, room = _begin(engine, [HELD, *range(7)])
    assert room.wait(WAIT_SECONDS)
    second, _ = _begin(engine, [9], length=600)
    assert second.answer is None
    assert second.before == [part for part in first.before if not part.done()]
    with ThreadPoolExecutor(1) as together:
        scored = together.submit(engine.finish, second)
        assert not wait([scored], 0.05).done
        assert 600 not in [tokens for _, tokens in encoder.passes]
        encoder.go_on.set()
        assert PairScore.unpack(scored.result(WAIT_SECONDS)[0][0]).raw == 9
    assert _scores(engine, first) == [HELD, *range(7)]
    assert encoder.most_under_way <= 1024


def test_batches_beside_each_other_keep_to_the_budget(lanes: Lanes) -> None:
    """However unlike they are."""
    encoder, draw = PackedEncoder(), np.random.default_rng(7)
    engine = ScoringEngine(encoder, device=CPU, lanes=lanes, max_batch_tokens=1024)
    under_way: list[tuple[Running, list[int]]] = []
    for _ in range(40):
        firsts = draw.integers(0, 900, size=draw.integers(1, 40)).tolist()
        running, room = _begin(engine, firsts, length=int(draw.choice([10, 60, 200, 510, 700])))
        under_way.append((running, firsts))
        if running.answer is None and not room.wait(0.02):
            _, wanted = under_way[-1]
            assert _scores(engine, under_way.pop()[0]) == wanted
    for running, wanted in under_way:
        assert _scores(engine, running) == wanted
    assert 512 < encoder.most_under_way <= 1024
    assert engine.busy_seconds == 0


def test_a_pair_that_only_fits_alone_waits_for_the_next_batch_too(lanes: Lanes) -> None:
    """It has the memory to itself, whatever has begun meanwhile."""
    encoder = HeldEncoder(fits=400)
    engine = ScoringEngine(encoder, device=CPU, lanes=lanes)
    first, room = _begin(engine, [HELD, *range(7)], length=400)
    room.wait(0.2)
    second, _ = _begin(engine, range(100, 108), length=400)
    encoder.go_on.set()
    assert _scores(engine, first) == [HELD, *range(7)]
    assert _scores(engine, second) == list(range(100, 108))


def test_requests_that_share_no_batch_let_none_begin_beside_theirs(encoder: HeldEncoder, lanes: Lanes) -> None:
    """MICRO_BATCH_ENABLED=false: one after the other."""
    engine = ScoringEngine(encoder, device=CPU, lanes=lanes, micro_batch=False)
    running, room = _begin(engine, range(40))
    assert running.answer is not None
    assert _scores(engine, running) == list(range(40))
    assert not room.is_set()
