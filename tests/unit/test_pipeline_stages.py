"""Where a request's time goes: each stage once, in order, as what it waited for says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from cache_parts import make_keys
from parts import played
from pipeline_parts import CountingLink, Parts

from bento_service.metrics import EntryMetrics
from bento_service.pairs import PairScore, TokenPair
from bento_service.waiting import Waiting

Stage = tuple[str, float, float]


class TimedLink(CountingLink):
    """A Scorer whose first batch begins 2 s after its call, each further one 10 s later, and all take 3 s, by what it says."""

    calls_begun = 0

    async def score(self, blobs: list[bytes]) -> list[PairScore]:
        """Answer at once."""
        begun = time.monotonic() + 2 + 10 * self.calls_begun
        self.calls_begun += 1
        pairs = [TokenPair.unpack(blob) for blob in blobs]
        return [PairScore(float(len(pair.ids)), self.outcome, begun=begun, ended=begun + 3) for pair in pairs]


@pytest.fixture
def parts(make_tokenizer: Callable[..., Any], entry_metrics: EntryMetrics) -> Parts:
    """Make a pipeline with a cache, in front of a Scorer that tells its times."""
    made = Parts(make_tokenizer, entry_metrics, cached=100)
    timed = TimedLink()
    made.link.score = timed.score  # type: ignore[method-assign]
    return made


def _told(entry_metrics: EntryMetrics) -> list[Stage]:
    stages: list[Stage] = []
    entry_metrics.on_stage = lambda name, begun, ended: stages.append((name, begun, ended))
    return stages


@played
async def test_a_computed_request_goes_through_every_stage(parts: Parts, entry_metrics: EntryMetrics) -> None:
    """Each begins where the one before ended, and the Scorer's own times are the Scorer's."""
    stages = _told(entry_metrics)
    result = await parts.rerank("a", "b")
    times = {name: (begun, ended) for name, begun, ended in stages}
    assert sorted(times) == ["batch_wait", "cache", "forward", "queue", "rank", "score", "tokenize"]
    assert len(stages) == len(times)
    assert times["cache"][1] <= times["tokenize"][0] <= times["tokenize"][1] <= times["queue"][0] <= times["queue"][1]
    assert times["queue"][1] <= times["batch_wait"][0]
    assert times["batch_wait"][1] - times["batch_wait"][0] == pytest.approx(2, abs=0.5)
    assert times["batch_wait"][1] == times["forward"][0]
    assert times["forward"][1] - times["forward"][0] == pytest.approx(3)
    assert times["score"][0] <= times["queue"][0]
    assert result.timing.queue == pytest.approx(2, abs=0.5)
    assert result.timing.inference == pytest.approx(3)
    assert result.timing.tokenization == pytest.approx(times["tokenize"][1] - times["tokenize"][0], abs=0.1)


@played
async def test_a_known_request_is_looked_up_and_ranked(parts: Parts, entry_metrics: EntryMetrics) -> None:
    """And nothing else."""
    await parts.rerank("a", "b")
    stages = _told(entry_metrics)
    result = await parts.rerank("a", "b")
    assert [name for name, _, _ in stages] == ["cache", "rank"]
    assert (result.timing.queue, result.timing.inference) == (0, 0)


@played
async def test_one_who_waits_for_another_s_computation_looks_up_once(parts: Parts, entry_metrics: EntryMetrics) -> None:
    """Its wait is none of the stages, as nothing is computed for it."""
    stages = _told(entry_metrics)
    await asyncio.gather(parts.rerank("a", "b"), parts.rerank("a", "b"))
    names = [name for name, _, _ in stages]
    assert names.count("cache") == names.count("rank") == 2
    assert names.count("tokenize") == names.count("forward") == 1


@played
async def test_a_big_request_s_calls_are_timed_one_by_one(parts: Parts, entry_metrics: EntryMetrics) -> None:
    """At most 32 pairs each; the request is inferred from the first batch's begin to the last one's end."""
    stages = _told(entry_metrics)
    result = await parts.rerank(*(f"text {number}" for number in range(70)))
    names = [name for name, _, _ in stages]
    assert names.count("batch_wait") == names.count("forward") == 3
    assert names.count("queue") == names.count("score") == 1
    assert result.timing.queue == pytest.approx(2, abs=0.5)
    assert result.timing.inference == pytest.approx(23, abs=0.5)


def test_the_caches_answer_a_request_once() -> None:
    """Also one that asks Redis again and again while another server computes."""
    answered: list[int] = []
    waiting = Waiting(make_keys(2), [0, 1], lambda _: 0.0, lambda: answered.append(1))
    waiting.caches_have_answered()
    waiting.caches_have_answered()
    assert answered == [1]
