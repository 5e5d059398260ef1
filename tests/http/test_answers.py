"""The answers of the object dialects, field by field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from fake_scorer import FakeScorer

DOCUMENTS = ["alpha", "beta", {"text": "gamma", "id": "g"}, "alpha", {"content": "delta", "id": None}]


def test_results_are_sorted_and_complete(client: TestClient) -> None:
    """Highest first, ties by index, identical documents all there."""
    results = client.post("/rerank", json={"query": "q", "documents": DOCUMENTS}).json()["results"]
    assert sorted(item["index"] for item in results) == [0, 1, 2, 3, 4]
    assert [(-item["relevance_score"], item["index"]) for item in results] == sorted(
        (-item["relevance_score"], item["index"]) for item in results
    )
    assert [item["rank"] for item in results] == [1, 2, 3, 4, 5]
    by_index = {item["index"]: item for item in results}
    assert by_index[0]["relevance_score"] == by_index[3]["relevance_score"]
    assert by_index[2]["id"] == "g"
    assert by_index[4]["id"] is None
    assert "id" not in by_index[0]
    assert by_index[4]["document"] == {"text": "delta"}


def test_identical_documents_are_scored_once(client: TestClient, scorer: FakeScorer) -> None:
    """Five documents, four texts."""
    before = scorer.pairs
    client.post("/rerank", json={"query": "asked once", "documents": DOCUMENTS})
    assert scorer.pairs - before == 4


def test_the_answer_holds_every_field_that_clients_read(client: TestClient) -> None:
    """The object answer of every dialect."""
    answer = client.post("/v2/rerank", json={"query": "q", "documents": ["a", "b"], "model": "m"}).json()
    assert answer["object"] == "rerank"
    assert answer["id"].startswith("rerank-")
    assert answer["model"] == "m"
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == answer["meta"]["tokens"]["input_tokens"] > 0
    assert answer["meta"]["api_version"] == {"version": "2"}
    assert answer["meta"]["billed_units"] == {"search_units": 1}
    assert answer["meta"]["cached_documents"] == 0
    assert set(answer["results"][0]) == {"index", "relevance_score"}


def test_usage_counts_duplicates(client: TestClient) -> None:
    """Four times the same document is four times its tokens."""
    one = client.post("/rerank", json={"query": "q", "documents": ["same words"]}).json()["usage"]["total_tokens"]
    four = client.post("/rerank", json={"query": "q", "documents": ["same words"] * 4}).json()["usage"]["total_tokens"]
    assert four == 4 * one


@pytest.mark.parametrize(
    ("route", "given", "documents"),
    [("/rerank", None, True), ("/v2/rerank", None, False), ("/rerank", "false", False), ("/v2/rerank", "true", True)],
)
def test_documents_come_back_when_asked_for(client: TestClient, route: str, given: str | None, documents: bool) -> None:
    """Each dialect has its default; Xinference's clients send strings."""
    results = client.post(route, json={"query": "q", "documents": ["a"], "return_documents": given}).json()["results"]
    assert ("document" in results[0]) is documents


@pytest.mark.parametrize(("top_n", "count"), [(None, 3), (0, 3), (2, 2), (10**9, 3)])
@pytest.mark.parametrize("name", ["top_n", "top_k", "rank_count"])
def test_top_n_keeps_the_best(client: TestClient, name: str, top_n: int | None, count: int) -> None:
    """Null, 0 and more than there are mean all."""
    answer = client.post("/v2/rerank", json={"query": "q", "documents": ["a", "b", "c"], name: top_n})
    assert len(answer.json()["results"]) == count


def test_a_threshold_drops_what_is_below(client: TestClient) -> None:
    """On the scale of the scores returned, raw or not."""
    body = {"query": "q", "documents": [f"document {number}" for number in range(20)]}
    for raw in (False, True):
        scores = [item["score"] for item in client.post("/rerank", json=body | {"raw_scores": raw}).json()["results"]]
        kept = client.post("/rerank", json=body | {"raw_scores": raw, "score_threshold": scores[7]}).json()["results"]
        assert [item["score"] for item in kept] == [score for score in scores if score >= scores[7]]


def test_raw_scores_are_cosines_of_the_scores(client: TestClient) -> None:
    """Score = (1 + cosine) / 2 for the built-in bi-encoder."""
    body = {"query": "q", "documents": ["a"]}
    raw = client.post("/rerank", json=body | {"raw_scores": True}).json()["results"][0]["score"]
    assert client.post("/rerank", json=body).json()["results"][0]["score"] == pytest.approx((1 + raw) / 2, abs=1e-12)


def test_truncation_is_reported(client: TestClient) -> None:
    """By index; max_tokens_per_doc cuts too, and is clamped to the window."""
    body = {"query": "q", "documents": ["short", "long words " * 300]}
    assert client.post("/rerank", json=body).json()["meta"]["truncated_documents"] == [1]
    assert client.post("/rerank", json=body | {"max_tokens_per_doc": 10**6}).json()["meta"]["truncated_documents"] == [1]
    answer = client.post("/rerank", json={"query": "q", "documents": ["one two three four"], "max_tokens_per_doc": 2}).json()
    assert answer["meta"]["truncated_documents"] == [0]


def test_an_instruction_the_model_cannot_take_is_a_warning(client: TestClient) -> None:
    """It is said, not swallowed."""
    answer = client.post("/rerank", json={"query": "q", "documents": ["d"], "instruction": "be kind"}).json()
    assert "instruction was ignored" in answer["meta"]["warnings"][0]


@pytest.mark.parametrize("text", ['"\\ud800 lone"', '"nul \\u0000 inside"', '"\\ud83d\\ude00"', '"%s"' % ("x" * 1_000_000)])
def test_odd_text_is_answered(client: TestClient, text: str) -> None:
    """Lone surrogates, NUL, emoji and a document of a million characters are scored like any other."""
    answer = client.post(
        "/rerank", content=f'{{"query":"q","documents":[{text},"d"]}}', headers={"content-type": "application/json"}
    )
    assert answer.status_code == 200
    assert len(answer.json()["results"]) == 2


@pytest.mark.parametrize("size", [10**9, 2**63, 10**30, 10**300], ids=["1e9", "2^63", "1e30", "1e300"])
@pytest.mark.parametrize("route", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_whole_numbers_may_have_any_size(client: TestClient, route: str, size: int) -> None:
    """All of the results, the whole window, the most windows; an id comes back as it is."""
    body = {"query": "q", "documents": [{"text": "a", "id": size}, "b"], "top_n": size, "max_tokens_per_doc": size}
    answer = client.post(route, json=body | {"max_chunks_per_doc": size, "long_documents": "chunk"})
    assert answer.status_code == 200
    assert {item.get("id") for item in answer.json()["results"]} == {size, None}


def test_unknown_fields_are_ignored(client: TestClient) -> None:
    """Clients send user, priority, encoding_format and more."""
    body = {"query": "q", "documents": ["d"], "user": "u", "priority": 3, "encoding_format": "float", "max_chunks_per_doc": None}
    assert client.post("/v2/rerank", json=body).status_code == 200


def undescribed(schema: dict[str, Any], path: str = "") -> list[str]:
    """Find the fields, however deep, that have no meaning written down."""
    found = []
    for name, field in schema.get("properties", {}).items():
        found += [] if field.get("description") else [f"{path}/{name}"]
        found += undescribed(field, f"{path}/{name}") + undescribed(field.get("items", {}), f"{path}/{name}")
    return found


def test_the_documentation_names_every_field_and_route(client: TestClient) -> None:
    """/docs.json is our own document, with meanings and examples."""
    document = client.get("/docs.json").json()
    assert {"/rerank", "/v2/rerank", "/health", "/livez", "/readyz", "/metrics"} <= set(document["paths"])
    schemas = document["components"]["schemas"]
    assert {"query", "documents", "top_n", "raw_scores", "max_tokens_per_doc"} <= set(schemas["RerankRequest"]["properties"])
    for name in ("RerankRequest", "RerankAnswer", "Error"):
        assert schemas[name]["examples"]
        assert undescribed(schemas[name]) == []
    assert {"400", "413", "415", "429", "500", "503", "504"} <= set(document["paths"]["/rerank"]["post"]["responses"])
    fields = schemas["RerankRequest"]["properties"]
    assert (fields["documents"]["maxItems"], fields["query"]["maxLength"]) == (1000, 1_000_000)


def test_bentoml_clients_see_the_documented_fields(client: TestClient) -> None:
    """/schema.json is what bentoml.SyncHTTPClient builds its methods from."""
    [route] = client.get("/schema.json").json()["routes"]
    assert route["route"] == "/rerank"
    assert set(route["input"]["required"]) == {"query", "documents"}
    assert {"results", "usage", "meta"} <= set(route["output"]["properties"])


def test_metrics_are_counted_by_route_and_not_by_path(client: TestClient) -> None:
    """Unknown paths share one label, so that they cannot grow memory."""
    for number in range(5):
        client.get(f"/unknown-{number}")
    client.post("/rerank", json={"query": "q", "documents": ["d"]})
    text = client.get("/metrics").text
    assert 'reranker_requests_total{route="other",status="404"}' in text
    assert 'reranker_requests_total{route="/rerank",status="200"}' in text
    assert "unknown-" not in text


def test_health_has_every_block(client: TestClient, builtin_tag: str) -> None:
    """Monitoring reads them by name."""
    answer = client.get("/health")
    report = answer.json()
    assert answer.status_code == 200
    assert report["status"] == "ok"
    assert report["model"]["tag"] == builtin_tag
    assert {
        "backend",
        "device",
        "quantization",
        "quantization_asked",
        "kind",
        "source",
        "revision",
        "max_length",
        "local_cache_size",
    } <= set(report["model"])
    assert set(report["distributed_cache"]) == {
        "enabled",
        "connected",
        "state",
        "cached_entries",
        "keyspace_hits",
        "keyspace_misses",
    }
    assert set(report["micro_batcher"]) == {"enabled", "total_requests", "total_batches", "avg_batch_size"}
    assert set(report["requests"]) == {
        "total",
        "success_rate",
        "average_wait_seconds",
        "average_processing_seconds",
        "waiting",
        "active",
    }
    assert json.dumps(report["limits"])
    assert report["versions"]["bentoml"]
