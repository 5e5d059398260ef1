"""The pipeline: each distinct text is scored once, and the answer tells what became of each document."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from parts import assert_idle, played
from pipeline_parts import MODEL, Parts

from bento_service.admission import Place
from bento_service.errors import DocumentTooLong, QueueFull, UnknownModel
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


@played
async def test_windows_of_long_documents_count_in_the_queue_and_in_patience(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who takes a long document for one pair would lose patience with it, and let too many others in."""
    estimates: list[int] = []

    def seconds_for(pairs: int) -> float:
        estimates.append(pairs)
        return 0.0

    monkeypatch.setattr(parts.admission, "seconds_for", seconds_for)
    parts.link.gate.clear()
    request = asyncio.create_task(parts.rerank("sea " * 600, "river", max_chunks=8))
    await parts.link.reached.wait()
    assert parts.admission.queued_pairs == 9
    assert max(estimates) >= 9
    parts.link.gate.set()
    result = await request
    assert len(parts.link.pairs) == 9
    assert sorted(result.spans) == [0, 1]
    assert_idle(parts.admission, parts.metrics)


@played
async def test_a_request_of_several_queries_is_never_refused_because_of_itself(parts: Parts) -> None:
    """It has one place in the queue, as if it were one query; another request does not profit from it."""
    place = Place()
    with parts.admission.place_for(90, place):
        with parts.admission.place_for(90, place), pytest.raises(QueueFull), parts.admission.place_for(1):
            pass
        assert (parts.admission.queued_pairs, place.pairs) == (90, 90)
    assert place.pairs == 0
    assert_idle(parts.admission, parts.metrics)
