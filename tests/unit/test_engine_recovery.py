"""The engine in trouble: a bad pair fails alone, a lost device ends the process, and lost memory comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch

from bento_service.errors import DeviceLost
from bento_service.pairs import Outcome, PairScore, TokenPair
from bento_service.scorer.engine import BATCHES_TO_GROW, ScoringEngine, _out_of_memory
from bento_service.scorer.row import Row
from bento_service.tally import Tally

CPU = torch.device("cpu")
POISON = 666


class FakeEncoder:
    """A cross-encoder whose logit is the first token id; `trouble` sees each pass before it runs."""

    packs = False
    weight_bytes = 0

    def __init__(self, trouble: Callable[[list[list[int]]], None]) -> None:
        self.trouble = trouble
        self.combining: Callable[[], None] = lambda: None

    def rows(self, pairs: Sequence[TokenPair]) -> tuple[list[Row], npt.NDArray[np.int64]]:
        """Every pair is a row."""
        return [Row(pair.ids, None) for pair in pairs], np.arange(len(pairs))[:, None]

    def forward(self, rows: Sequence[Row]) -> torch.Tensor:
        """Meet the trouble or give the logits."""
        self.trouble([row.ids.tolist() for row in rows])
        return torch.tensor([[float(row.ids[0])] for row in rows])

    def combine(self, outputs: torch.Tensor, needs: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return the logits as they are."""
        self.combining()
        return outputs[torch.from_numpy(needs[:, 0]), 0]


def _raise_on_poison(error: Exception) -> Callable[[list[list[int]]], None]:
    def trouble(ids: list[list[int]]) -> None:
        if any(POISON in row for row in ids):
            raise error

    return trouble


def _blobs(*firsts: int, length: int = 16) -> list[bytes]:
    return [TokenPair(np.full(length, first, np.uint32), None, 0, np.inf, 0).pack() for first in firsts]


def _score(engine: ScoringEngine, blobs: Sequence[bytes]) -> tuple[list[PairScore], Tally]:
    packed, tally = engine.score(blobs)
    return [PairScore.unpack(each) for each in packed], tally


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes cannot be multiplied"), IndexError("index out of range"), KeyError(1)], ids=repr
)
@pytest.mark.parametrize("bad", [{0}, {4}, {8}, {2, 3}, set(range(9))], ids=str)
def test_an_error_that_is_not_about_memory_fails_the_pair_that_causes_it_alone(error: Exception, bad: set[int]) -> None:
    """Found by halving; its companions are scored, and the budget stays, since memory was not short."""
    engine = ScoringEngine(FakeEncoder(_raise_on_poison(error)), device=CPU)
    before = engine.max_batch_tokens
    scores, tally = _score(engine, _blobs(*[POISON if number in bad else number for number in range(9)]))
    assert {number for number, score in enumerate(scores) if score.outcome is Outcome.FAILED} == bad
    assert all(score.raw == number for number, score in enumerate(scores) if number not in bad)
    assert (tally.failed_pairs, tally.memory_retries, engine.max_batch_tokens) == (len(bad), 0, before)
    assert engine.busy_seconds == 0


@pytest.mark.parametrize("count", [1, 9])
def test_a_lost_device_is_told_as_such(count: int) -> None:
    """Every later pass would fail too, so halving is no help."""
    passes = []

    def trouble(ids: list[list[int]]) -> None:
        passes.append(len(ids))
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    engine = ScoringEngine(FakeEncoder(trouble), device=CPU)
    with pytest.raises(DeviceLost, match="GPU failed"):
        engine.score(_blobs(*range(count)))
    assert passes == [count]


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (IndexError("index out of range in self"), False),
        (ValueError(), False),
    ],
    ids=str,
)
def test_a_lack_of_memory_is_known_by_class_or_words(error: Exception, memory: bool) -> None:
    """Only the CUDA allocator and Python have classes for it."""
    assert _out_of_memory(error) is memory
    fails = iter([error])

    def trouble(_: list[list[int]]) -> None:
        for each in fails:
            raise each

    engine = ScoringEngine(FakeEncoder(trouble), device=CPU, max_batch_tokens=1024)
    scores, tally = _score(engine, _blobs(*range(8)))
    assert scores == [PairScore(float(number), Outcome.SCORED) for number in range(8)]
    assert (tally.memory_retries, engine.max_batch_tokens) == ((1, 64) if memory else (0, 1024))


def test_a_budget_that_memory_halved_doubles_up_to_what_was_asked() -> None:
    """After enough good batches each time; what was short may be there again."""
    most = 64

    def trouble(ids: list[list[int]]) -> None:
        if sum(map(len, ids)) > most:
            raise MemoryError

    engine = ScoringEngine(FakeEncoder(trouble), device=CPU, max_batch_tokens=400)
    assert _score(engine, _blobs(*range(25)))[1].memory_retries > 0
    small = engine.max_batch_tokens
    assert 16 <= small <= most
    budgets = []
    most = 10**9
    for _ in range(5 * BATCHES_TO_GROW):
        engine.score(_blobs(1))
        budgets.append(engine.max_batch_tokens)
    assert budgets[: BATCHES_TO_GROW - 1] == [small] * (BATCHES_TO_GROW - 1)
    steps = [min(400, small * 2**step) for step in range(1, 5)]
    assert budgets[BATCHES_TO_GROW - 1 :: BATCHES_TO_GROW][:4] == steps
    assert budgets[-1] == 400


def test_trouble_with_memory_begins_the_count_anew() -> None:
    """A budget that only just fits must not grow at once."""
    tight = False

    def trouble(ids: list[list[int]]) -> None:
        if tight and len(ids) > 1:
            raise MemoryError

    engine = ScoringEngine(FakeEncoder(trouble), device=CPU, max_batch_tokens=256)
    tight = True
    engine.score(_blobs(*range(16)))
    tight = False
    for _ in range(BATCHES_TO_GROW - 1):
        engine.score(_blobs(1))
    tight = True
    engine.max_batch_tokens = 32
    engine.score(_blobs(1, 2))
    tight = False
    small = engine.max_batch_tokens
    for _ in range(BATCHES_TO_GROW - 1):
        engine.score(_blobs(1))
    assert engine.max_batch_tokens == small
    engine.score(_blobs(1))
    assert engine.max_batch_tokens == 2 * small


def test_an_engine_is_busy_while_a_batch_runs_and_only_then() -> None:
    """For as long as the whole batch has been running, not just its pass."""
    seen: list[float] = []
    encoder = FakeEncoder(lambda _: seen.append(engine.busy_seconds))
    engine = ScoringEngine(encoder, device=CPU, max_batch_tokens=64)
    assert engine.busy_seconds == 0
    engine.score(_blobs(*range(20)))
    assert engine.busy_seconds == 0
    assert len(seen) == 5
    assert 0 < seen[0] < seen[1] < seen[2] < seen[3] < seen[4]
    engine.score([])
    assert engine.busy_seconds == 0


def _raise(error: Exception) -> None:
    raise error


def test_an_engine_that_raised_is_not_busy() -> None:
    """Or its Scorer would count as hung for ever: nobody sends it the batch that would end that."""
    encoder = FakeEncoder(lambda _: None)
    engine = ScoringEngine(encoder, device=CPU)
    encoder.combining = lambda: _raise(MemoryError())
    with pytest.raises(MemoryError):
        engine.score(_blobs(1))
    assert engine.busy_seconds == 0


def test_a_device_that_is_lost_after_the_launch_is_told_as_such() -> None:
    """CUDA reports a failed pass where its result is fetched."""
    encoder = FakeEncoder(lambda _: None)
    encoder.combining = lambda: _raise(torch.AcceleratorError("CUDA error: device-side assert triggered"))
    with pytest.raises(DeviceLost):
        ScoringEngine(encoder, device=CPU).score(_blobs(1))
