"""A pair's raw score depends on the pair alone: not on its batch, its order, its companions or how calls are split."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch

from bento_service.pairs import Outcome, PairScore, TokenPair
from bento_service.scorer.device import multiplies_bf16
from bento_service.scorer.engine import ScoringEngine
from bento_service.scorer.lanes import Lanes
from bento_service.tally import Tally
from small_models import DOCUMENTS, QUERIES, ServedModel, make_cross_encoder, raw_scores, serve

pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = 1e-5
CPU = torch.device("cpu")
SOME_PAIRS = [(query, document) for query in QUERIES[:2] for document in (*DOCUMENTS[:10:2], *DOCUMENTS[12:])]
SEEDS = range(6)


class Subject:
    """A served model, some tokenised pairs of it, and the score that each of them has alone."""

    def __init__(self, model: ServedModel) -> None:
        self.model = model
        self.tokens = model.tokens(SOME_PAIRS)
        self.alone = np.concatenate([raw_scores(model.engine, [pair]) for pair in self.tokens])

    def engine(
        self, *, max_batch_tokens: int | None = None, micro_batch: bool = True, lanes: Lanes | None = None
    ) -> ScoringEngine:
        """Build another engine around the same weights."""
        return ScoringEngine(
            self.model.engine._encoder, device=CPU, max_batch_tokens=max_batch_tokens, micro_batch=micro_batch, lanes=lanes
        )


@pytest.fixture(scope="module", params=["builtin", "bert"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Serve the built-in bi-encoder, then a small cross-encoder."""
    source = "builtin" if request.param == "builtin" else make_cross_encoder(tmp_path_factory.mktemp("invariance") / "invariant")
    return Subject(serve(source))


def assert_same(scores: np.ndarray, expected: np.ndarray) -> None:
    """Compare raw scores, which must be as many."""
    assert scores.shape == expected.shape
    assert float(np.abs(scores - expected).max()) < TOLERANCE


def chance_of(seed: int) -> random.Random:
    """Make a source of chance that is the same in every run."""
    return random.Random(seed)  # noqa: S311  nothing secret is drawn


def of_request(pair: TokenPair, request: int) -> TokenPair:
    """Give a pair to another request."""
    return TokenPair(pair.ids, pair.type_ids, pair.split, pair.deadline, request)


def test_the_pairs_have_scores_that_can_be_told_apart(subject: Subject) -> None:
    """If all pairs scored the same, a mixed-up order would go unnoticed."""
    gaps = np.diff(np.sort(subject.alone))
    assert float(np.quantile(gaps, 0.2)) > 10 * TOLERANCE
    assert len({len(pair.ids) for pair in subject.tokens}) > 10


def test_together_is_as_alone(subject: Subject) -> None:
    """All pairs in one call score as each does in a call of its own."""
    assert_same(raw_scores(subject.model.engine, subject.tokens), subject.alone)


@pytest.mark.parametrize("seed", SEEDS)
def test_any_companions_in_any_order_are_as_alone(subject: Subject, seed: int) -> None:
    """A random choice of pairs, some of them repeated, in a random order."""
    chosen = chance_of(seed).choices(range(len(subject.tokens)), k=12)
    assert_same(raw_scores(subject.model.engine, [subject.tokens[place] for place in chosen]), subject.alone[chosen])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_request_split_into_calls_is_as_alone(subject: Subject, seed: int) -> None:
    """A random order, cut into calls at random places."""
    chance = chance_of(seed)
    order = chance.sample(range(len(subject.tokens)), len(subject.tokens))
    cuts = [0, *sorted(chance.sample(range(1, len(order)), 4)), len(order)]
    calls = [[subject.tokens[place] for place in order[start:end]] for start, end in itertools.pairwise(cuts)]
    assert_same(np.concatenate([raw_scores(subject.model.engine, call) for call in calls]), subject.alone[order])


@pytest.mark.parametrize("max_batch_tokens", [1, 64, 200])
def test_tiny_forward_passes_are_as_alone(subject: Subject, max_batch_tokens: int) -> None:
    """However few tokens a forward pass may have, down to one row each."""
    assert_same(raw_scores(subject.engine(max_batch_tokens=max_batch_tokens), subject.tokens), subject.alone)


@pytest.mark.parametrize("count", [2, 3])
def test_side_by_side_is_as_alone(subject: Subject, count: int) -> None:
    """In parts on threads of their own, however many."""
    lanes, tally = Lanes(count), Tally()
    try:
        scores = subject.engine(lanes=lanes).raw_scores(subject.tokens * 2, tally)
    finally:
        lanes.close()
    assert tally.forwards >= count
    assert_same(scores, np.tile(subject.alone, 2))


@pytest.mark.parametrize("micro_batch", [True, False])
@pytest.mark.parametrize("seed", SEEDS[:2])
def test_requests_that_share_passes_or_do_not_are_as_alone(subject: Subject, micro_batch: bool, seed: int) -> None:
    """Pairs of four requests, interleaved, with micro-batching on and off."""
    chance = chance_of(seed)
    mixed = [of_request(pair, chance.randrange(4)) for pair in subject.tokens]
    assert_same(raw_scores(subject.engine(micro_batch=micro_batch), mixed), subject.alone)


def test_micro_batching_off_keeps_requests_apart(subject: Subject) -> None:
    """Two requests of one like pair each: one forward pass when they may share it, two when not."""
    pair = subject.tokens[0]
    blobs = [of_request(pair, request).pack() for request in (1, 2)]
    forwards = {}
    for micro_batch in (True, False):
        _, tally = subject.engine(micro_batch=micro_batch).score(blobs)
        forwards[micro_batch] = tally.forwards
    assert forwards[False] == 2 * forwards[True]


@pytest.mark.parametrize("seed", SEEDS[:3])
def test_late_companions_change_nothing(subject: Subject, seed: int) -> None:
    """Pairs whose deadline has passed are left out, and the others score as alone."""
    late = set(chance_of(seed).sample(range(len(subject.tokens)), 8))
    tokens = [
        TokenPair(pair.ids, pair.type_ids, pair.split, 0.0, 0) if place in late else pair
        for place, pair in enumerate(subject.tokens)
    ]
    blobs, tally = subject.model.engine.score([pair.pack() for pair in tokens])
    scores = [PairScore.unpack(blob) for blob in blobs]
    assert {place for place, score in enumerate(scores) if score.outcome is Outcome.LATE} == late
    assert tally.late_pairs == len(late)
    timely = [place for place in range(len(tokens)) if place not in late]
    assert_same(np.array([scores[place].raw for place in timely], np.float32), subject.alone[timely])


def test_the_packed_hop_changes_nothing(subject: Subject) -> None:
    """Scores that travelled as bytes are those of the arrays."""
    direct = subject.model.engine.raw_scores(subject.tokens, Tally())
    assert np.array_equal(raw_scores(subject.model.engine, subject.tokens), direct)


@pytest.mark.skipif(not multiplies_bf16(CPU), reason="this CPU only emulates bf16")
def test_bf16_ranks_as_fp32_does() -> None:
    """The built-in in bf16 correlates with itself in fp32, and is not fp32 in disguise."""
    subject = Subject(serve("builtin"))
    scores = raw_scores(serve("builtin", quantization="bf16").engine, subject.tokens)
    assert np.corrcoef(scores, subject.alone)[0, 1] > 0.999
    assert 1e-5 < float(np.abs(scores - subject.alone).max()) < 0.03
