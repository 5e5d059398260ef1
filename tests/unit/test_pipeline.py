"""The pipeline: each distinct text is scored once, and the answer tells what became of each document."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from parts import assert_idle, played
from pipeline_parts import MODEL, Parts

from bento_service.errors import DocumentTooLong, UnknownModel
from bento_service.metrics import EntryMetrics
from bento_service.ranking import activate


@pytest.fixture
def parts(make_tokenizer: Callable[..., Any], entry_metrics: EntryMetrics) -> Parts:
    """Make a pipeline with the built-in tokenizer."""
    return Parts(make_tokenizer, entry_metrics)


@played
async def test_a_text_that_repeats_is_scored_once_and_ranked_each_time(parts: Parts) -> None:
    """In the order of the caller's list, where scores are equal; its tokens are counted each time."""
    result = await parts.rerank("sea sea", "sea", "sea sea", "sea sea sea", "sea", raw_scores=True)
    assert [(each.index, each.score, each.rank) for each in result.ranked] == [
        (3, 7.0, 1),
        (0, 6.0, 2),
        (2, 6.0, 3),
        (1, 5.0, 4),
        (4, 5.0, 5),
    ]
    assert len(parts.link.pairs) == 3
    assert (result.token_count, result.truncated, result.warnings, result.model) == (29, [], [], MODEL)
    assert (parts.metrics.documents._value.get(), parts.metrics.duplicate_documents._value.get()) == (5, 2)
    assert_idle(parts.admission, parts.metrics)


@played
async def test_scores_are_activated_unless_raw_ones_are_asked_for(parts: Parts) -> None:
    """By the model's own activation."""
    assert [each.score for each in (await parts.rerank("sea", raw_scores=True)).ranked] == [5.0]
    assert [each.score for each in (await parts.rerank("sea")).ranked] == [activate(5.0, "sigmoid")]


@played
async def test_requests_have_numbers_of_their_own_and_pairs_share_their_request_s(parts: Parts) -> None:
    """The Scorer tells requests apart by them, and drops what is past the deadline."""
    await parts.rerank("a", "b")
    await parts.rerank("a")
    first, second, third = parts.link.pairs
    assert first.request == second.request != third.request
    assert first.deadline == second.deadline < third.deadline


@played
async def test_documents_that_lost_text_are_named_by_their_places(parts: Parts) -> None:
    """Duplicates, too."""
    long = "sea " * 100
    result = await parts.rerank("sea", long, "river", long)
    assert (result.truncated, parts.metrics.truncated_documents._value.get()) == ([1, 3], 2)


@played
async def test_where_truncation_is_refused_the_first_document_that_does_not_fit_is_named(parts: Parts) -> None:
    """Nothing is scored."""
    with pytest.raises(DocumentTooLong, match=r"^document 2 ") as caught:
        await parts.rerank("sea", "river", "sea " * 100, "sea " * 99, truncation=False)
    assert (caught.value.param, parts.link.pairs) == ("documents", [])
    assert_idle(parts.admission, parts.metrics)


@pytest.mark.parametrize("model", [None, MODEL, "mine"])
@pytest.mark.parametrize("strict", [True, False])
@played
async def test_the_model_s_name_is_known_with_and_without_its_version(
    make_tokenizer: Callable[..., Any], entry_metrics: EntryMetrics, strict: bool, model: str | None
) -> None:
    """The answer repeats what the caller said."""
    parts = Parts(make_tokenizer, entry_metrics, strict=strict)
    assert (await parts.rerank("sea", model=model)).model == (model or MODEL)


@pytest.mark.parametrize("model", ["", "other", "mine:v2", "mine:", "min", "Mine", ":v1", "v1", "mine:v1:v1"])
@played
async def test_another_model_s_name_is_refused_in_strict_mode_only(
    make_tokenizer: Callable[..., Any], entry_metrics: EntryMetrics, model: str
) -> None:
    """Before anything is tokenised; the message says what is served."""
    strict = Parts(make_tokenizer, entry_metrics, strict=True)
    with pytest.raises(UnknownModel, match=MODEL) as caught:
        await strict.rerank("sea", model=model)
    assert (caught.value.status, caught.value.param, strict.tokenizer.jobs) == (404, "model", 0)
    lenient = Parts(make_tokenizer, entry_metrics)
    assert (await lenient.rerank("sea", model=model)).model == (model or MODEL)


@played
async def test_an_instruction_is_answered_with_a_warning(parts: Parts) -> None:
    """The model has no place for it."""
    assert (await parts.rerank("a", instruction="be kind")).warnings
