"""Every error of the object dialects: status, body and headers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from bento_service.pairs import Outcome
from fake_scorer import FakeScorer

ROUTES = ("/rerank", "/v2/rerank")
JSON = {"content-type": "application/json"}
SECRET = "planted-marker-7c1f"


def assert_error(body: dict[str, Any], code: str) -> None:
    """Check the one body that the clients of all object dialects read."""
    assert set(body) == {"message", "detail", "error"}
    assert body["message"] == body["detail"] == body["error"]["message"] != ""
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["code"] == code
    assert SECRET not in json.dumps(body)


def deep(levels: int) -> str:
    """Nest lists."""
    return '{"query":"q","documents":' + "[" * levels + "]" * levels + "}"


BAD_BODIES = [
    pytest.param("{", "invalid_json", id="cut off"),
    pytest.param("", "invalid_json", id="empty"),
    pytest.param("[1]", "invalid_json", id="a list"),
    pytest.param("null", "invalid_json", id="null"),
    pytest.param(b'{"query":"\xff","documents":["d"]}', "invalid_json", id="not UTF-8"),
    pytest.param('{"query":"q","documents":["d"],"score_threshold":NaN}', "invalid_json", id="NaN"),
    pytest.param('{"query":"q","documents":["d"],"score_threshold":-Infinity}', "invalid_json", id="infinity"),
    pytest.param('{"query":"q","documents":["d"],"score_threshold":1e999}', "invalid_request", id="overflow"),
    pytest.param('{"query":"q","documents":["d"],"top_n":' + "9" * 5000 + "}", "invalid_json", id="5000 digits"),
    pytest.param(deep(20_000), "invalid_json", id="nested"),
    pytest.param('{"documents":["d"]}', "invalid_request", id="no query"),
    pytest.param('{"query":null,"documents":["d"]}', "invalid_request", id="null query"),
    pytest.param('{"query":" \\n","documents":["d"]}', "invalid_request", id="blank query"),
    pytest.param('{"query":5,"documents":["d"]}', "invalid_request", id="number query"),
    pytest.param('{"query":"q"}', "invalid_request", id="no documents"),
    pytest.param('{"query":"q","documents":[]}', "documents_empty", id="empty documents"),
    pytest.param('{"query":"q","documents":null}', "invalid_request", id="null documents"),
    pytest.param('{"query":"q","documents":"d"}', "invalid_request", id="string documents"),
    pytest.param('{"query":"q","documents":["d",null]}', "invalid_request", id="null document"),
    pytest.param('{"query":"q","documents":["d",{"no":"text"}]}', "invalid_request", id="object without text"),
    pytest.param('{"query":"q","documents":["d"],"top_n":-1}', "invalid_request", id="top_n -1"),
    pytest.param('{"query":"q","documents":["d"],"top_n":1.5}', "invalid_request", id="top_n 1.5"),
    pytest.param('{"query":"q","documents":["d"],"top_n":true}', "invalid_request", id="top_n true"),
    pytest.param('{"query":"q","documents":["d"],"max_tokens_per_doc":0}', "invalid_request", id="max_tokens_per_doc 0"),
    pytest.param('{"query":"q","documents":["d"],"raw_scores":"maybe"}', "invalid_request", id="raw_scores"),
    pytest.param('{"query":"q","documents":["d"],"long_documents":"xyzzy"}', "invalid_request", id="long_documents"),
    pytest.param('{"query":"' + "many words " * 300 + '","documents":["d"]}', "query_too_long", id="long query"),
]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(("body", "code"), BAD_BODIES)
def test_a_bad_body_is_a_400_that_names_the_fault(client: TestClient, route: str, body: str | bytes, code: str) -> None:
    """On each object route."""
    answer = client.post(route, content=body, headers=JSON)
    assert answer.status_code == 400
    assert_error(answer.json(), code)


@pytest.mark.parametrize("route", ROUTES)
def test_too_many_documents_are_refused(client: TestClient, route: str) -> None:
    """100,000 documents: over RERANKER_MAX_DOCUMENTS."""
    answer = client.post(route, json={"query": "q", "documents": ["d"] * 100_000})
    assert answer.status_code == 400
    assert_error(answer.json(), "documents_too_many")


@pytest.mark.parametrize("route", ROUTES)
def test_a_document_that_does_not_fit_is_named_when_truncation_is_off(client: TestClient, route: str) -> None:
    """The message names the index and not the text."""
    documents = ["short", f"{SECRET} long words " * 200]
    answer = client.post(route, json={"query": "q", "documents": documents, "truncation": False})
    assert answer.status_code == 400
    assert_error(answer.json(), "document_too_long")
    assert "document 1" in answer.json()["message"]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "application/vnd.bentoml+pickle", "Application/Vnd.BentoML+Pickle; x=1"],
)
def test_only_json_is_read(client: TestClient, route: str, content_type: str) -> None:
    """Also where BentoML would answer with a body of its own."""
    answer = client.post(route, content=b"{}", headers={"content-type": content_type})
    assert answer.status_code == 415
    assert_error(answer.json(), "unsupported_media_type")


@pytest.mark.parametrize("route", ROUTES)
def test_a_body_over_the_limit_is_refused(client: TestClient, route: str) -> None:
    """17 MB, whether its length is declared or not."""
    body = b'{"query":"q","documents":["' + b"x" * 17_000_000 + b'"]}'
    declared = client.post(route, content=body, headers=JSON)
    chunked = client.post(route, content=iter([body[:10_000_000], body[10_000_000:]]), headers=JSON)
    for answer in (declared, chunked):
        assert answer.status_code == 413
        assert_error(answer.json(), "body_too_large")


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("outcome", "status", "code"), [(Outcome.FAILED, 500, "scoring_failed"), (Outcome.LATE, 504, "deadline_passed")]
)
def test_a_pair_that_was_not_scored_is_an_error(
    client: TestClient, scorer: FakeScorer, route: str, outcome: Outcome, status: int, code: str
) -> None:
    """NaN from the model, or a deadline that passed in the Scorer."""
    scorer.outcome = outcome
    try:
        answer = client.post(route, json={"query": "q", "documents": [SECRET]})
    finally:
        scorer.outcome = Outcome.SCORED
    assert answer.status_code == status
    assert_error(answer.json(), code)


@pytest.mark.parametrize("route", ROUTES)
def test_an_exception_in_the_scorer_is_a_500_in_our_words(client: TestClient, scorer: FakeScorer, route: str) -> None:
    """Its own message, which may hold text, is not passed on."""
    scorer.error = ValueError(SECRET)
    try:
        answer = client.post(route, json={"query": "q", "documents": ["not known yet"]})
    finally:
        scorer.error = None
    assert answer.status_code == 500
    assert_error(answer.json(), "scoring_failed")


def test_text_of_callers_is_never_logged(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    """Neither of good requests nor of bad ones."""
    client.post("/rerank", json={"query": SECRET, "documents": [SECRET]})
    client.post("/rerank", json={"query": SECRET, "documents": [SECRET], "top_n": SECRET})
    client.post("/rerank", content=f"{SECRET}".encode(), headers=JSON)
    assert SECRET not in caplog.text
