"""What the entry service tells of itself and its requests, in process: ids, /metrics, and no spans where none are sent."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from bento_service.edge import GET_ROUTES

DOCUMENTS = ["alpha", "beta"]


@pytest.mark.parametrize("path", [*sorted(GET_ROUTES), "/elsewhere"])
def test_every_answer_has_the_request_s_id(client: TestClient, path: str) -> None:
    """Pages, probes and what is not there too; the caller's own is given back."""
    assert client.get(path, headers={"x-request-id": "mine"}).headers["x-request-id"] == "mine"
    made = {client.get(path).headers["x-request-id"] for _ in range(2)}
    assert len(made) == 2


def test_both_kinds_of_routes_answer_with_one_id(client: TestClient) -> None:
    """BentoML's API and the mounted ones; it is not repeated."""
    for path in ("/rerank", "/v2/rerank"):
        answer = client.post(path, json={"query": "q", "documents": DOCUMENTS}, headers={"x-request-id": "mine"})
        assert answer.headers.get_list("x-request-id") == ["mine"]


def test_without_an_exporter_no_request_gets_a_span(client: TestClient) -> None:
    """BentoML would make several and name the request after one."""
    answer = client.post("/rerank", json={"query": "q", "documents": DOCUMENTS})
    assert "x-bentoml-request-id" not in answer.headers
    from bentoml._internal.configuration.containers import BentoMLContainer

    from bento_service.service.tracing import stage_spans

    assert BentoMLContainer.tracing_excluded_urls.get().url_disabled("http://127.0.0.1:3000/rerank")
    assert stage_spans() is None


def test_the_exposition_has_one_type_line_for_each_metric(client: TestClient) -> None:
    """Counted ones and measured ones together; this process is the only one."""
    client.post("/v2/rerank", json={"query": "stages", "documents": DOCUMENTS})
    text = client.get("/metrics").text
    types = [line for line in text.splitlines() if line.startswith("# TYPE reranker_")]
    assert len(types) == len(set(types)) > 25
    families = {family.name: family for family in text_string_to_metric_families(text)}
    stages = {sample.labels["stage"] for sample in families["reranker_stage_seconds"].samples}
    assert {"parse", "cache", "tokenize", "queue", "score", "rank"} <= stages
    [process] = {sample.labels["process"] for sample in families["reranker_process_resident_bytes"].samples}
    assert process == "entry-1"


def test_what_is_loaded_is_no_garbage(client: TestClient, frozen: list[int]) -> None:
    """A search through it would stop the entry worker for a tenth of a second."""
    assert client.get("/livez").is_success
    assert frozen[0] > 10_000
