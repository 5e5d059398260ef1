"""vLLM's score format: which pairs are made of queries and documents, and where each score ends up."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import pytest

from bento_service.dialects.dialect import Limits, to_bytes
from bento_service.dialects.objects import NATIVE
from bento_service.dialects.score import SCORE
from bento_service.errors import InvalidRequest, QueueFull
from bento_service.ranking import rank
from bento_service.schemas import CacheCounts, RerankQuery, RerankResult

PRIVATE = "xyzzy"
LIMITS = Limits(documents=5, document_characters=50, chunks=8)
# The score of a pair in these tests: the same whatever it is asked with.
SCORES = {("p", "a"): 0.1, ("p", "b"): 0.4, ("p", "c"): 0.3, ("q", "a"): 0.9, ("q", "b"): 0.2, ("q", "c"): 0.7}


def _read(**fields: Any) -> list[RerankQuery]:
    return SCORE.read(fields, LIMITS)


def _pairs(queries: Sequence[RerankQuery]) -> list[tuple[str, list[str]]]:
    return [(query.query, [document.text for document in query.documents]) for query in queries]


def _answer(**fields: Any) -> dict[str, Any]:
    """Read, score and rank as the service does, write."""
    queries = _read(**fields)
    results = []
    for query in queries:
        ranked = rank([SCORES[query.query, document.text] for document in query.documents])
        count = len(query.documents)
        results.append(RerankResult(query.model or "served", ranked, 10 * count, [], CacheCounts(0, count, 0)))
    answer: dict[str, Any] = json.loads(to_bytes(SCORE.write(queries, results, took_ms=1.0)))
    return answer


@pytest.mark.parametrize(
    ("fields", "pairs"),
    [
        ({"queries": "q", "documents": "a"}, [("q", ["a"])]),
        ({"queries": "q", "documents": ["a", "b"]}, [("q", ["a", "b"])]),
        ({"queries": ["q"], "documents": ["a", "b"]}, [("q", ["a", "b"])]),
        ({"queries": ["p", "q"], "documents": ["a", "b"]}, [("p", ["a"]), ("q", ["b"])]),
        ({"queries": ["p", "q", "p"], "documents": ["a", "b", "c"]}, [("p", ["a", "c"]), ("q", ["b"])]),
        ({"queries": ["q", "q"], "documents": ["a", "a"]}, [("q", ["a", "a"])]),
        ({"text_1": "q", "text_2": ["a", "b"]}, [("q", ["a", "b"])]),
        ({"text_1": ["p", "q"], "text_2": ["a", "b"]}, [("p", ["a"]), ("q", ["b"])]),
        ({"text_1": "q", "documents": "a"}, [("q", ["a"])]),
        ({"queries": "q", "documents": {"text": "a"}}, [("q", ["a"])]),
        ({"queries": "q", "documents": [{"content": [{"type": "text", "text": "a"}]}, "b"]}, [("q", ["a", "b"])]),
    ],
)
def test_queries_and_documents_make_pairs(fields: dict[str, Any], pairs: list[tuple[str, list[str]]]) -> None:
    """One to one, one to N, N to N, under both names; a query that is repeated is asked once."""
    assert _pairs(_read(**fields)) == pairs


@pytest.mark.parametrize(("given", "raw"), [(None, False), (True, False), (False, True), ("false", True), ("True", False)])
def test_without_the_activation_scores_are_raw(given: object, raw: bool) -> None:
    """It is on unless it is switched off."""
    assert [query.raw_scores for query in _read(queries="q", documents="a", use_activation=given)] == [raw]
    assert [query.raw_scores for query in _read(queries="q", documents="a")] == [False]


def test_model_and_instruction_go_with_every_query() -> None:
    """And what is not known is ignored."""
    queries = _read(queries=["p", "q"], documents=["a", "b"], model="m", instruction="i", top_n=1, truncate_prompt_tokens=5)
    assert [(query.model, query.instruction, query.top_n) for query in queries] == [("m", "i", None)] * 2


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"queries": [], "documents": ["a"]}, "documents_empty", "queries"),
        ({"queries": "q", "documents": []}, "documents_empty", "documents"),
        ({"text_1": [], "text_2": ["a"]}, "documents_empty", "text_1"),
        ({"text_1": "q", "text_2": []}, "documents_empty", "text_2"),
        ({"queries": ["q"] * 6, "documents": ["a"] * 6}, "documents_too_many", "queries"),
        ({"queries": ["q"] * 6, "documents": ["a"]}, "documents_too_many", "queries"),
        ({"queries": ["p", "q"], "documents": [PRIVATE]}, "invalid_request", "queries"),
        ({"queries": ["p", "q"], "documents": ["a", "b", PRIVATE]}, "invalid_request", "queries"),
        ({"queries": ["p", " "], "documents": ["a", PRIVATE]}, "invalid_request", "queries"),
        ({"queries": "", "documents": [PRIVATE]}, "invalid_request", "queries"),
        ({"queries": 5, "documents": [PRIVATE]}, "invalid_request", "queries"),
        ({"queries": [PRIVATE, 5], "documents": ["a", "b"]}, "invalid_request", "queries"),
        ({"queries": "q"}, "invalid_request", "documents"),
        ({"documents": PRIVATE}, "invalid_request", "queries"),
        ({"queries": PRIVATE, "documents": 5}, "invalid_request", "documents"),
        ({"queries": "q", "documents": [PRIVATE, None]}, "invalid_request", "documents"),
        ({"queries": "q", "documents": {PRIVATE: PRIVATE}}, "invalid_request", "documents"),
        ({"queries": "q", "documents": "a", "use_activation": PRIVATE}, "invalid_request", "use_activation"),
        ({"queries": "q", "documents": "a", "model": 5}, "invalid_request", "model"),
        ({"queries": "q" * 51, "documents": "a"}, "query_too_long", "queries"),
        ({"queries": ["q", "q" * 51], "documents": ["a", "b"]}, "query_too_long", "queries"),
        ({"queries": "q", "documents": ["a", "b" * 51]}, "document_too_large", "documents"),
    ],
)
def test_what_makes_no_pairs_is_refused(fields: dict[str, Any], code: str, param: str) -> None:
    """The field at fault is named, its text is not."""
    with pytest.raises(InvalidRequest) as caught:
        _read(**fields)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, code, param)
    assert PRIVATE not in caught.value.message


def test_limits_themselves_are_allowed() -> None:
    """As many documents, and characters, as the server takes."""
    assert len(_read(queries="q" * 50, documents=["a" * 50] * 5)[0].documents) == 5


@pytest.mark.parametrize(
    ("fields", "scores"),
    [
        ({"queries": "p", "documents": ["a", "b", "c"]}, [0.1, 0.4, 0.3]),
        ({"queries": ["p", "q"], "documents": ["b", "a"]}, [0.4, 0.9]),
        ({"queries": ["p", "q", "p", "q"], "documents": ["a", "a", "b", "b"]}, [0.1, 0.9, 0.4, 0.2]),
        ({"queries": ["q", "q", "q"], "documents": ["b", "b", "c"]}, [0.2, 0.2, 0.7]),
        ({"text_1": "q", "text_2": "c"}, [0.7]),
    ],
)
def test_scores_stand_in_the_order_given(fields: dict[str, Any], scores: list[float]) -> None:
    """Not in that of the ranking, also where repeated queries were asked once."""
    data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)]
    assert _answer(**fields)["data"] == data


def test_the_answer_holds_every_field_that_vllm_sends() -> None:
    """Tokens of all queries together."""
    before = int(time.time())
    answer = _answer(queries=["p", "q", "p"], documents=["a", "b", "c"], model="m")
    assert set(answer) == {"id", "object", "created", "model", "data", "usage"}
    assert answer["id"].startswith("score-")
    assert before <= answer["created"] <= time.time()
    assert (answer["object"], answer["model"]) == ("list", "m")
    assert answer["usage"] == {"prompt_tokens": 30, "total_tokens": 30}
    assert _answer(queries="p", documents="a")["model"] == "served"


def test_an_id_of_the_caller_s_does_not_move_a_score() -> None:
    """Places are the service's own."""
    assert [
        item["score"] for item in _answer(queries="p", documents=[{"text": "a", "id": 1}, {"text": "b", "id": 0}])["data"]
    ] == [0.1, 0.4]


def test_errors_are_those_of_the_object_dialects() -> None:
    """One body for all of their clients."""
    error = QueueFull("full", retry_after_seconds=1)
    assert SCORE.error(error) == NATIVE.error(error)
