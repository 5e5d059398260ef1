"""The page at `/`, as BentoML's app sends it."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient


def test_the_page_is_at_the_root(client: TestClient) -> None:
    """In place of BentoML's own, which loads scripts from elsewhere."""
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "<h1>Reranker</h1>" in answer.text
    assert "swagger" not in answer.text.lower()


def test_the_page_has_its_headers(client: TestClient) -> None:
    """They hold browsers to it."""
    headers = client.get("/").headers
    assert headers["content-security-policy"].startswith("default-src 'none'; ")
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_the_page_takes_nothing(client: TestClient, method: str) -> None:
    """It is read, and its requests go to /rerank."""
    assert client.request(method, "/").status_code == 405
