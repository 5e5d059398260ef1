"""What the error table leaves open: the many ways of a bad body, of a content type, of a length; and what is logged."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

ROUTES = ("/rerank", "/v1/rerank", "/v2/rerank")
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
def test_a_body_over_the_limit_that_hides_its_length_is_refused(client: TestClient, route: str) -> None:
    """17 MB in two pieces."""
    body = b'{"query":"q","documents":["' + b"x" * 17_000_000 + b'"]}'
    answer = client.post(route, content=iter([body[:10_000_000], body[10_000_000:]]), headers=JSON)
    assert answer.status_code == 413
    assert_error(answer.json(), "body_too_large")


def test_text_of_callers_is_never_logged(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    """Neither of good requests nor of bad ones."""
    client.post("/rerank", json={"query": SECRET, "documents": [SECRET]})
    client.post("/rerank", json={"query": SECRET, "documents": [SECRET], "top_n": SECRET})
    client.post("/rerank", content=f"{SECRET}".encode(), headers=JSON)
    assert SECRET not in caplog.text
