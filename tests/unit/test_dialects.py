"""Dialects: the answer that every client can read, and the error body."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest

from bento_service.dialects.dialect import Limits, to_bytes
from bento_service.dialects.objects import COHERE_V2, NATIVE, V1, ObjectDialect
from bento_service.errors import DocumentTooLong, InvalidRequest, QueueFull
from bento_service.ranking import Ranked
from bento_service.schemas import CacheCounts, RerankQuery, RerankResult

RESULT = RerankResult(
    "m",
    [Ranked(1, 0.75, 1), Ranked(0, 0.25, 2)],
    token_count=12,
    truncated=[0],
    cache=CacheCounts(hits=1, misses=0, shared=1),
    warnings=["w"],
)

LIMITS = Limits(documents=1000, document_characters=1000, chunks=8)


def _query(dialect: ObjectDialect = NATIVE, **fields: Any) -> RerankQuery:
    [query] = dialect.read({"query": "q", "documents": ["a", {"text": "b", "id": 7}], **fields}, LIMITS)
    return query


def _answer(dialect: ObjectDialect = NATIVE, **fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(to_bytes(dialect.write([_query(dialect, **fields)], [RESULT], took_ms=1.2345)))
    return answer


@pytest.mark.parametrize("dialect", [NATIVE, COHERE_V2], ids=lambda dialect: dialect.name)
def test_every_client_finds_the_fields_it_parses(dialect: ObjectDialect) -> None:
    """`object`, `model`, both usage integers, results in rank order, and the meta block."""
    before = int(time.time())
    answer = _answer(dialect)
    assert answer["object"] == "rerank"
    assert answer["id"].startswith("rerank-")
    assert before <= answer["created"] <= time.time()
    assert answer["model"] == "m"
    assert answer["usage"] == {"prompt_tokens": 12, "total_tokens": 12}
    assert [(each["index"], each["relevance_score"]) for each in answer["results"]] == [(1, 0.75), (0, 0.25)]
    assert answer["meta"] == {
        "api_version": {"version": "2"},
        "billed_units": {"search_units": 1},
        "tokens": {"input_tokens": 12, "output_tokens": 0},
        "cached_documents": 1,
        "truncated_documents": [0],
        "warnings": ["w"],
    }
    assert answer["took_ms"] == 1.23


def test_every_answer_has_an_id_of_its_own() -> None:
    """Logs of callers join on it."""
    assert _answer()["id"] != _answer()["id"]


def test_the_native_dialect_has_score_and_rank() -> None:
    """Beside relevance_score."""
    assert [(each["score"], each["rank"]) for each in _answer()["results"]] == [(0.75, 1), (0.25, 2)]


def test_cohere_gets_no_score_and_rank() -> None:
    """Only what Cohere sends."""
    assert all(set(each) <= {"index", "relevance_score", "id"} for each in _answer(COHERE_V2)["results"])


def test_documents_come_back_as_objects_by_default_on_the_native_route() -> None:
    """Never a bare string, which litellm fails on."""
    assert [each["document"] for each in _answer()["results"]] == [{"text": "b"}, {"text": "a"}]


@pytest.mark.parametrize(("dialect", "fields"), [(NATIVE, {"return_documents": False}), (COHERE_V2, {})])
def test_documents_that_are_not_asked_for_are_absent(dialect: ObjectDialect, fields: dict[str, Any]) -> None:
    """Never null, which strict clients fail on."""
    assert all("document" not in each for each in _answer(dialect, **fields)["results"])


def test_cohere_gets_documents_when_it_asks() -> None:
    """The field wins over the dialect's default."""
    assert _answer(COHERE_V2, return_documents=True)["results"][0]["document"] == {"text": "b"}


def test_voyage_s_clients_find_their_data_beside_the_results() -> None:
    """On /v1/rerank alone, which says Cohere's version 1."""
    answer = _answer(V1)
    assert answer["data"] == [{"index": 1, "relevance_score": 0.75}, {"index": 0, "relevance_score": 0.25}]
    assert answer["results"] == [{"index": 1, "relevance_score": 0.75, "id": 7}, {"index": 0, "relevance_score": 0.25}]
    assert answer["meta"]["api_version"] == {"version": "1"}
    assert all("data" not in _answer(dialect) for dialect in (NATIVE, COHERE_V2))


def test_cohere_v1_gets_documents_when_it_asks() -> None:
    """As objects; by default none."""
    assert [each["document"] for each in _answer(V1, return_documents=True)["results"]] == [{"text": "b"}, {"text": "a"}]
    assert all("document" not in each for each in _answer(V1)["results"])


@pytest.mark.parametrize("dialect", [NATIVE, V1, COHERE_V2], ids=lambda dialect: dialect.name)
def test_the_window_that_scored_best_is_told(dialect: ObjectDialect) -> None:
    """Of the documents that were scored in windows, in characters; the others have none."""
    answer = dialect.write([_query(dialect)], [replace(RESULT, spans={1: (10, 25)})], took_ms=0)
    assert answer["results"][0]["document_span"] == {"start": 10, "end": 25}
    assert "document_span" not in answer["results"][1]


def test_an_id_is_echoed_and_an_absent_one_is_not_invented() -> None:
    """Result 1 is the object with id 7, result 0 the plain string."""
    first, second = _answer()["results"]
    assert first["id"] == 7
    assert "id" not in second


def test_an_id_of_null_is_echoed_as_null() -> None:
    """It was there, so it comes back."""
    answer = _answer(documents=["a", {"text": "b", "id": None}])
    assert "id" in answer["results"][0]
    assert answer["results"][0]["id"] is None


@pytest.mark.parametrize(("count", "units"), [(1, 1), (100, 1), (101, 2), (1000, 10)])
def test_search_units_count_as_cohere_counts(count: int, units: int) -> None:
    """One per hundred documents begun, whatever top_n keeps."""
    result = RerankResult("m", [Ranked(0, 0.5, 1)], token_count=1, truncated=[], cache=CacheCounts(0, 1, 0))
    answer = COHERE_V2.write([_query(documents=["d"] * count)], [result], took_ms=0)
    assert answer["meta"]["billed_units"] == {"search_units": units}


def test_no_result_is_an_empty_list() -> None:
    """A threshold may drop all."""
    answer = NATIVE.write([_query()], [RerankResult("m", [], token_count=3, truncated=[], cache=CacheCounts(0, 1, 0))], took_ms=0)
    assert (answer["results"], answer["usage"]["total_tokens"], answer["meta"]["warnings"]) == ([], 3, [])


def test_reading_knows_the_limit() -> None:
    """The dialect hands it on."""
    with pytest.raises(InvalidRequest, match="at most 1 "):
        NATIVE.read({"query": "q", "documents": ["a", "b"]}, replace(LIMITS, documents=1))


def test_an_error_body_speaks_to_all_clients_at_once() -> None:
    """`message`, a `detail` that is a string, and OpenAI's error object."""
    status, body = NATIVE.error(DocumentTooLong("document 3 does not fit", param="documents"))
    assert status == 400
    assert body == {
        "message": "document 3 does not fit",
        "detail": "document 3 does not fit",
        "error": {
            "message": "document 3 does not fit",
            "type": "invalid_request_error",
            "param": "documents",
            "code": "document_too_long",
        },
    }


def test_an_error_without_a_field_at_fault_says_null() -> None:
    """The key is always there."""
    assert NATIVE.error(QueueFull("full", retry_after_seconds=1))[1]["error"]["param"] is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_json_is_never_sent(value: float) -> None:
    """An error here beats a body that clients cannot parse."""
    with pytest.raises(ValueError, match="JSON"):
        to_bytes({"score": value})


def test_json_is_compact_utf8() -> None:
    """No escapes, no spaces: bodies are as long as their text."""
    assert to_bytes({"a": ["Größe 中😀", 1]}) == '{"a":["Größe 中😀",1]}'.encode()
