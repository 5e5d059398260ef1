"""Limits of one request, on every route: what is over them is refused in words that say what to do."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from starlette.testclient import TestClient

JSON = {"content-type": "application/json"}
MOST = 1_000_000  # RERANKER_MAX_DOCUMENT_CHARACTERS
ROUTES = ("/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score")


def fields(route: str, query: str, documents: list[Any]) -> dict[str, Any]:
    """Word a request as its route wants it."""
    return {"queries" if "score" in route else "query": query, "documents": documents}


@pytest.mark.parametrize("route", ROUTES)
def test_a_document_with_too_many_characters_is_named(client: TestClient, route: str) -> None:
    """Characters, not bytes; as a string, and in an object."""
    for document in ("é" * (MOST + 1), {"text": "x" * (MOST + 1)}):
        answer = client.post(route, json=fields(route, "q", ["short", document]))
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "document_too_large")
        assert answer.json()["message"].startswith(f"document 1 has {MOST + 1} characters")


def test_a_text_with_too_many_characters_is_named_as_tei_does(client: TestClient) -> None:
    """422, and its kind."""
    answer = client.post("/rerank", json={"query": "q", "texts": ["x" * (MOST + 1)]})
    assert (answer.status_code, answer.json()["error_type"]) == (422, "Validation")


@pytest.mark.parametrize("route", ROUTES)
def test_a_query_with_too_many_characters_is_refused(client: TestClient, route: str) -> None:
    """Before it is tokenised."""
    answer = client.post(route, json=fields(route, "x" * (MOST + 1), ["d"]))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "query_too_long")
    assert f"{MOST}" in answer.json()["message"]


@pytest.mark.parametrize("route", ROUTES)
def test_a_document_of_the_limit_is_read_and_what_the_model_cannot_read_is_cut(client: TestClient, route: str) -> None:
    """In characters of two bytes each."""
    assert client.post(route, json=fields(route, "q", ["é" * MOST])).status_code == 200


@pytest.mark.parametrize("route", ROUTES)
def test_more_values_than_documents_need_are_refused(client: TestClient, route: str) -> None:
    """In fields that nobody reads, too."""
    answer = client.post(route, json=fields(route, "q", ["d"]) | {"ignored": [[]] * 40_000})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "documents_too_many")


def test_rank_fields_are_bounded(client: TestClient) -> None:
    """Each is looked for in each document: their product must stay small."""
    body = {"query": "q", "documents": [{"text": "d"}] * 10, "rank_fields": ["text"] * 101}
    answer = client.post("/v1/rerank", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "rank_fields")


@pytest.mark.parametrize("route", ROUTES)
def test_gzip_is_read_on_every_route(client: TestClient, route: str) -> None:
    """As if it had come plain."""
    plain = json.dumps(fields(route, "q", ["one", "two"])).encode()
    packed = client.post(route, content=gzip.compress(plain), headers=JSON | {"content-encoding": "gzip"})
    assert packed.status_code == 200
    shown = "data" if "score" in route else "results"
    assert packed.json()[shown] == client.post(route, content=plain, headers=JSON).json()[shown]


@pytest.mark.parametrize("route", ROUTES)
def test_a_gzip_bomb_is_over_the_limit(client: TestClient, route: str) -> None:
    """100 MB in 0.1 MB."""
    bomb = gzip.compress(b'{"query":"' + b"x" * 100_000_000, compresslevel=1)
    answer = client.post(route, content=bomb, headers=JSON | {"content-encoding": "gzip"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("route", ROUTES)
def test_another_encoding_is_refused(client: TestClient, route: str) -> None:
    """With the one that is read."""
    answer = client.post(route, content=b"{}", headers=JSON | {"content-encoding": "br"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert "gzip" in answer.json()["message"]


def test_no_origin_is_allowed_by_default(client: TestClient) -> None:
    """Neither asked before nor answered."""
    asks = {"origin": "https://a.example", "access-control-request-method": "POST"}
    assert not client.options("/rerank", headers=asks).is_success
    answer = client.post("/rerank", json=fields("/rerank", "q", ["d"]), headers=asks)
    assert not [name for name in answer.headers if name.startswith("access-control")]
