"""The pipeline: whatever ends a request, its place in the queue comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from parts import assert_idle, played
from pipeline_parts import Parts, held

from bento_service.errors import (
    DeadlinePassed,
    DocumentTooLong,
    QueryTooLong,
    QueueFull,
    RequestError,
    ScorerDown,
    ScorerFailed,
)
from bento_service.metrics import EntryMetrics
from bento_service.pairs import Outcome


@pytest.fixture
def parts(make_tokenizer: Callable[..., Any], entry_metrics: EntryMetrics) -> Parts:
    """Make a pipeline with the built-in tokenizer."""
    return Parts(make_tokenizer, entry_metrics)


@pytest.mark.parametrize(
    ("fields", "outcome", "down", "error"),
    [
        ({"query": "sea " * 200}, Outcome.SCORED, None, QueryTooLong),
        ({"query": "sea" + " " * 100_000}, Outcome.SCORED, None, QueryTooLong),
        ({"truncation": False}, Outcome.SCORED, None, DocumentTooLong),
        ({"seconds": -1}, Outcome.SCORED, None, DeadlinePassed),
        ({}, Outcome.LATE, None, DeadlinePassed),
        ({}, Outcome.FAILED, None, ScorerFailed),
        ({}, Outcome.SCORED, ScorerDown("gone"), ScorerDown),
    ],
    ids=["query", "blank query", "document", "too late", "late", "failed", "down"],
)
@played
async def test_a_place_comes_back_after_every_failure(
    parts: Parts, fields: dict[str, Any], outcome: Outcome, down: Exception | None, error: type[RequestError]
) -> None:
    """And the next request is served."""
    parts.link.outcome, parts.link.error = outcome, down
    with pytest.raises(error):
        await parts.rerank("river", "sea " * 100, **fields)
    assert_idle(parts.admission, parts.metrics)
    parts.link.outcome, parts.link.error = Outcome.SCORED, None
    assert len((await parts.rerank("river")).ranked) == 1


@played
async def test_a_deadline_that_passes_while_tokenising_is_a_passed_deadline(parts: Parts) -> None:
    """The place comes back though the thread still works, and nothing is scored."""
    async with held(parts):
        with pytest.raises(DeadlinePassed):
            await parts.rerank("sea", seconds=0.05)
        await parts.landed()
        assert_idle(parts.admission, parts.metrics)
    assert len((await parts.rerank("river")).ranked) == 1
    assert len(parts.link.pairs) == 1


@played
async def test_a_place_is_held_from_before_tokenising_for_each_distinct_text(
    make_tokenizer: Callable[..., Any], entry_metrics: EntryMetrics
) -> None:
    """Or a flood of requests would wait for the tokenizer, unbounded; who has no place is not tokenised."""
    parts = Parts(make_tokenizer, entry_metrics, most=3)
    async with held(parts):
        first = asyncio.create_task(parts.rerank("a", "b", "a", "a"))
        await asyncio.to_thread(parts.tokenizer.reached.wait)
        assert parts.admission.queued_pairs == 2
        with pytest.raises(QueueFull):
            await parts.rerank("c", "d")
        assert parts.tokenizer.jobs == 1
    assert len((await first).ranked) == 4
    assert_idle(parts.admission, parts.metrics)


@played
async def test_a_caller_who_leaves_while_tokenising_gives_the_place_back(parts: Parts) -> None:
    """At once."""
    async with held(parts):
        leaving = asyncio.create_task(parts.rerank("a", "b"))
        await asyncio.to_thread(parts.tokenizer.reached.wait)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await parts.landed()
        assert_idle(parts.admission, parts.metrics)
    assert parts.link.pairs == []


@played
async def test_without_a_scorer_nothing_is_tokenised(parts: Parts) -> None:
    """It would be for nobody."""
    parts.link.up = False
    with pytest.raises(ScorerDown):
        await parts.rerank("a")
    assert parts.tokenizer.jobs == 0
