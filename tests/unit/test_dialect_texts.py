"""TEI's dialect: `texts` in, a bare list out, errors of its own kind."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bento_service import errors
from bento_service.dialects.dialect import Limits, to_bytes
from bento_service.dialects.texts import TEI
from bento_service.errors import InvalidRequest, RequestError
from bento_service.ranking import Ranked
from bento_service.schemas import CacheCounts, Document, RerankQuery, RerankResult

PRIVATE = "xyzzy"
LIMITS = Limits(documents=10, document_characters=50, chunks=8)
RESULT = RerankResult("m", [Ranked(1, 0.75, 1), Ranked(0, 0.25, 2)], 12, [0], CacheCounts(1, 1, 0), ["w"])


def _read(**fields: Any) -> RerankQuery:
    [query] = TEI.read({"query": "q", "texts": ["a", "b"], **fields}, LIMITS)
    return query


def test_a_bare_request_takes_tei_s_defaults() -> None:
    """Scores in 0..1, long texts cut on the right, no texts in the answer."""
    assert _read() == RerankQuery(query="q", documents=[Document("a"), Document("b")])


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"raw_scores": True}, "raw_scores", True),
        ({"raw_scores": "true"}, "raw_scores", True),
        ({"raw_scores": None}, "raw_scores", False),
        ({"return_text": True}, "return_documents", True),
        ({"return_text": "False"}, "return_documents", False),
        ({"return_text": None}, "return_documents", False),
        ({"truncate": True}, "truncation", True),
        ({"truncate": None}, "truncation", True),
        ({"truncate": False}, "truncation", False),
        ({"truncation_direction": "Right"}, "truncation_side", "right"),
        ({"truncation_direction": "right"}, "truncation_side", "right"),
        ({"truncation_direction": "Left"}, "truncation_side", "left"),
        ({"truncation_direction": "left"}, "truncation_side", "left"),
        ({"truncation_direction": None}, "truncation_side", "right"),
        ({"top_n": 1}, "top_n", 1),
        ({"top_n": 0}, "top_n", 0),
        ({"top_n": None}, "top_n", None),
        ({"model": "m"}, "model", "m"),
        ({"model": None}, "model", None),
    ],
)
def test_each_field_is_read(fields: dict[str, Any], name: str, value: object) -> None:
    """In the spellings that TEI's clients send; null means the default."""
    assert getattr(_read(**fields), name) == value


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"query": " "}, "query"),
        ({"query": [PRIVATE]}, "query"),
        ({"texts": PRIVATE}, "texts"),
        ({"texts": [PRIVATE, {"text": PRIVATE}]}, "texts"),
        ({"texts": None}, "texts"),
        ({"raw_scores": PRIVATE}, "raw_scores"),
        ({"return_text": 1}, "return_text"),
        ({"truncate": PRIVATE}, "truncate"),
        ({"truncation_direction": PRIVATE}, "truncation_direction"),
        ({"truncation_direction": 1}, "truncation_direction"),
        ({"top_n": -1}, "top_n"),
        ({"top_n": 1.5}, "top_n"),
        ({"model": 5}, "model"),
    ],
)
def test_a_wrong_field_is_named_and_not_repeated(fields: dict[str, Any], param: str) -> None:
    """TEI's own types, and no more lenience than there."""
    with pytest.raises(InvalidRequest, match=param) as caught:
        _read(**fields)
    assert caught.value.param == param
    assert PRIVATE not in caught.value.message


def test_what_tei_does_not_know_is_ignored() -> None:
    """The fields of other dialects included."""
    assert _read(top_k=1, return_documents=True, truncation=False, score_threshold=0.9, inputs=PRIVATE) == _read()


@pytest.mark.parametrize(
    ("texts", "code", "message"),
    [
        ([], "documents_empty", "texts is empty"),
        (["a"] * 11, "documents_too_many", "11 texts are too many: this server takes at most 10 "),
        (["a", "b" * 51], "document_too_large", "document 1 has 51 characters"),
    ],
)
def test_limits_are_kept(texts: list[str], code: str, message: str) -> None:
    """With codes of their own."""
    with pytest.raises(InvalidRequest, match=message) as caught:
        _read(texts=texts)
    assert (caught.value.code, caught.value.param) == (code, "texts")
    assert len(_read(texts=["b" * 50] * 10).documents) == 10


def test_the_answer_is_a_bare_list_in_the_order_of_the_ranking() -> None:
    """Nothing but index and score, as haystack and llama-index read it."""
    assert TEI.write([_read()], [RESULT], took_ms=1.0) == [{"index": 1, "score": 0.75}, {"index": 0, "score": 0.25}]


def test_texts_come_back_when_asked_for() -> None:
    """Each beside its own score."""
    answer = json.loads(to_bytes(TEI.write([_read(return_text=True)], [RESULT], took_ms=1.0)))
    assert answer == [{"index": 1, "score": 0.75, "text": "b"}, {"index": 0, "score": 0.25, "text": "a"}]


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (errors.InvalidRequest, 422, "Validation"),
        (errors.QueryTooLong, 422, "Validation"),
        (errors.DocumentTooLong, 422, "Validation"),
        (errors.UnknownModel, 404, "Validation"),
        (errors.QueueFull, 429, "Overloaded"),
        (errors.ScorerFailed, 424, "Backend"),
        (errors.ScorerDown, 503, "Unhealthy"),
        (errors.DeadlinePassed, 504, "Backend"),
    ],
)
def test_errors_are_worded_as_tei_words_them(error: type[RequestError], status: int, kind: str) -> None:
    """Its statuses, its kinds, and no field beside `error` and `error_type`."""
    assert TEI.error(error("what to do")) == (status, {"error": "what to do", "error_type": kind})


def test_an_empty_list_has_a_status_of_its_own() -> None:
    """As in TEI."""
    assert TEI.error(InvalidRequest("none", code="documents_empty")) == (400, {"error": "none", "error_type": "Empty"})
