"""Every client that people use, its real package, against a running server.

tests/clients holds the calls, docs/clients.md the examples, which are run as they stand.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from client_scripts import ClientScripts, python_of
from scenario import COMMON, Example, snippets
from servers import Server

pytestmark = pytest.mark.timeout(600)  # eleven interpreters import large packages before the first test

ENVIRONMENTS = {
    "bentoml": "dev",
    "cohere": "current",
    "haystack": "current",
    "langchain_jina": "current",
    "litellm": "current",
    "llama_index_tei": "current",
    "rerankers": "current",
    "voyageai": "current",
    "infinity": "older",
    "langchain_cohere": "older",
    "llama_index_cohere": "older",
}
QUEUE_PAIRS = 40
SCRIPTS_AT_ONCE = 3
SETTINGS = {
    "RERANKER_MAX_QUEUE_PAIRS": QUEUE_PAIRS,  # room for all scripts at once, and soon filled
    "ENABLE_PREDICTION_CACHE": "false",  # so that each call needs a place in the queue
    # Longer than the Scorer stands still here on the busiest machine.
    "RERANKER_SCORER_SILENCE_SECONDS": 300,
    "RERANKER_REQUEST_TIMEOUT": 300,
}
GUIDE = Example(COMMON, "").names
QUERY, DOCUMENTS = GUIDE["query"], GUIDE["documents"]
BEST = "A reranker sorts documents by relevance to a query."
BLANK = "query is blank: give the text to rank the documents for"
TOO_LONG = "document 1 does not fit the model's window"
FULL = "too many documents wait to be scored"
RANKING = [("/rerank", "documents"), ("/rerank", "texts"), ("/v1/rerank", "documents"), ("/v2/rerank", "documents")]


@contextmanager
def occupied(server: Server) -> Iterator[None]:
    """Keep the queue full: the Scorer stands still with a big request in it until the block ends."""
    [scorer] = server.workers("Scorer")
    documents = [f"document {number}" for number in range(QUEUE_PAIRS)]
    with ThreadPoolExecutor(1) as pool:
        scorer.suspend()
        try:
            answer = pool.submit(server.post, query="occupies the queue", documents=documents)
            while server.get("/health").json()["requests"]["active"] == 0:
                assert not answer.done()
            yield
        finally:
            scorer.resume()
        assert answer.result().status_code == httpx.codes.OK


@pytest.fixture(scope="module")
def server(builtin_tag: str) -> Iterator[Server]:
    """Start a server whose queue is small."""
    assert builtin_tag
    for environment in ENVIRONMENTS.values():
        python_of(environment)
    with Server(Path(os.environ["BENTOML_HOME"]), **SETTINGS) as running:
        yield running


@pytest.fixture(scope="module")
def right(server: Server) -> list[dict[str, Any]]:
    """Rank the guide's documents as POST /rerank does."""
    return server.post(query=QUERY, documents=DOCUMENTS).json()["results"]


@pytest.fixture(scope="module")
def scripts(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClientScripts]:
    """Run all scripts at once; then some at a time into a full queue that has room again once their calls were refused."""
    running = ClientScripts(ENVIRONMENTS, server.url, tmp_path_factory.mktemp("clients"))
    try:
        running.wait(lambda: all(script.ready or script.ended for script in running.of.values()))
        all_scripts = list(running.of.values())
        for start in range(0, len(all_scripts), SCRIPTS_AT_ONCE):
            some = all_scripts[start : start + SCRIPTS_AT_ONCE]
            assert len(DOCUMENTS) * sum(len(script.overloaded) for script in some) <= QUEUE_PAIRS
            with occupied(server):
                for script in some:
                    script.go()
                running.wait(lambda some=some: all(script.refused_once or script.ended for script in some))
            running.wait(lambda some=some: all(script.ended for script in some))
        yield running
    finally:
        running.stop()


@pytest.mark.parametrize(
    ("script", "call", "count", "has_text"),
    [
        ("bentoml", "sync", 2, True),
        ("bentoml", "async", 2, True),
        ("cohere", "v2", 2, False),
        ("cohere", "async v2", 2, False),
        ("cohere", "v1", 2, True),
        ("cohere", "v1 rank_fields", 2, True),
        ("haystack", "tei", 2, True),
        ("haystack", "cohere", 2, True),
        ("infinity", "rank", 2, True),
        ("langchain_cohere", "rank", 2, True),
        ("langchain_jina", "rank", 2, True),
        ("litellm", "vllm", 2, True),
        ("litellm", "vllm, objects", 2, True),
        ("litellm", "vllm, async", 2, True),
        ("litellm", "tei", 2, True),
        ("llama_index_cohere", "rank", 2, True),
        ("llama_index_tei", "rank", 2, True),
        ("rerankers", "cohere", 3, True),
        ("rerankers", "jina", 3, True),
        ("rerankers", "text-embeddings-inference", 3, True),
        ("rerankers", "voyage", 3, True),
        ("voyageai", "rank", 2, True),
        ("voyageai", "async", 2, True),
    ],
)
def test_a_client_ranks_as_the_service_does(
    scripts: ClientScripts, right: list[dict[str, Any]], script: str, call: str, count: int, has_text: bool
) -> None:
    """The same order and scores as POST /rerank, as many as asked for, and the documents where the client has them."""
    told = scripts.of[script].call(call)
    assert told["event"] == "answered", told
    assert [item["index"] for item in told["answer"]] == [item["index"] for item in right][:count]
    assert [item["score"] for item in told["answer"]] == pytest.approx([item["score"] for item in right][:count], abs=1e-6)
    for item in told["answer"]:
        assert item["text"] == (DOCUMENTS[item["index"]] if has_text else None)


def test_the_guide_s_examples_print_the_best_document(scripts: ClientScripts) -> None:
    """Each example of docs/clients.md, by the script of its package; none is left out."""
    examples = snippets().keys() - {COMMON}
    told = {name: script.call(name) for script in scripts.of.values() for name in script.calls.keys() & examples}
    assert told == {name: {"event": "answered", "answer": [BEST]} for name in examples}


@pytest.mark.parametrize(
    ("script", "call", "kind", "message"),
    [
        ("bentoml", "blank", "bentoml.exceptions.InvalidArgument", BLANK),
        ("cohere", "v1 blank", "cohere.errors.bad_request_error.BadRequestError", BLANK),
        ("cohere", "v2 blank", "cohere.errors.bad_request_error.BadRequestError", BLANK),
        ("haystack", "cohere blank", "cohere.errors.bad_request_error.BadRequestError", BLANK),
        ("haystack", "tei blank", "builtins.RuntimeError", BLANK),
        ("infinity", "blank, raised", "infinity_client.errors.UnexpectedStatus", BLANK),
        ("langchain_cohere", "blank", "cohere.errors.bad_request_error.BadRequestError", BLANK),
        ("langchain_jina", "blank", "builtins.RuntimeError", BLANK),
        ("litellm", "tei blank", "litellm.exceptions.APIError", BLANK),
        ("litellm", "tei too long", "litellm.exceptions.APIError", TOO_LONG),
        ("litellm", "vllm blank", "litellm.exceptions.BadRequestError", BLANK),
        ("llama_index_cohere", "blank", "cohere.errors.bad_request_error.BadRequestError", BLANK),
        ("voyageai", "blank", "voyageai.error.InvalidRequestError", BLANK),
        ("voyageai", "too long", "voyageai.error.InvalidRequestError", TOO_LONG),
        # These look for results in the answer without a look at its status.
        ("llama_index_tei", "blank", "builtins.AssertionError", ""),
        ("llama_index_tei", "blank, two texts", "builtins.TypeError", "string indices"),
        ("rerankers", "cohere blank", "builtins.KeyError", "results"),
        ("rerankers", "jina blank", "builtins.KeyError", "results"),
        ("rerankers", "text-embeddings-inference blank", "builtins.TypeError", "string indices"),
        ("rerankers", "voyage blank", "builtins.KeyError", "data"),
    ],
)
def test_an_error_is_the_client_s_own(scripts: ClientScripts, script: str, call: str, kind: str, message: str) -> None:
    """The class that the package raises for such an error, with the service's words where the package reads them."""
    told = scripts.of[script].call(call)
    assert told["event"] == "raised", told
    assert kind in told["kinds"]
    assert message in told["message"]


def test_infinity_s_client_tells_an_error_by_none(scripts: ClientScripts) -> None:
    """It neither raises nor parses; the status is there for those who ask."""
    assert scripts.of["infinity"].call("blank")["answer"] == {"none": True, "status": 400}


@pytest.mark.parametrize(
    ("script", "call"),
    [
        ("cohere", "cohere.Client"),
        ("cohere", "cohere.ClientV2"),
        ("haystack", "haystack CohereRanker"),
        ("haystack", "haystack HuggingFaceTEIRanker"),
        ("langchain_cohere", "langchain_cohere.CohereRerank"),
        ("litellm", "litellm.Router"),
        ("llama_index_cohere", "llama_index CohereRerank"),
        ("voyageai", "voyageai"),
    ],
)
def test_a_client_that_retries_outlives_a_full_queue(scripts: ClientScripts, script: str, call: str) -> None:
    """The guide's example is refused with 429, tries again by itself, and prints the best document."""
    told = scripts.of[script].call(f"{call}, overloaded")
    assert told == {"event": "answered", "answer": [BEST]}
    *refused, last = scripts.of[script].statuses(f"{call}, overloaded")
    assert set(refused) == {429}
    assert last == httpx.codes.OK


@pytest.mark.parametrize(
    ("script", "call", "kind", "message"),
    [
        ("bentoml", "bentoml.AsyncHTTPClient", "bentoml.exceptions.BentoMLException", FULL),
        ("bentoml", "bentoml.SyncHTTPClient", "bentoml.exceptions.BentoMLException", FULL),
        ("langchain_jina", "langchain_community JinaRerank", "builtins.RuntimeError", FULL),
        ("litellm", "litellm hosted_vllm", "litellm.exceptions.RateLimitError", FULL),
        ("litellm", "litellm huggingface", "litellm.exceptions.RateLimitError", FULL),
        ("litellm", "num_retries", "litellm.exceptions.RateLimitError", FULL),
        ("llama_index_tei", "llama_index TextEmbeddingInference", "builtins.AssertionError", ""),
        ("rerankers", "rerankers APIRanker", "builtins.KeyError", "results"),
        ("voyageai", "one attempt", "voyageai.error.RateLimitError", FULL),
    ],
)
def test_a_client_that_does_not_retry_says_so(scripts: ClientScripts, script: str, call: str, kind: str, message: str) -> None:
    """It asks once, and raises."""
    told = scripts.of[script].call(f"{call}, overloaded")
    assert told["event"] == "raised", told
    assert kind in told["kinds"]
    assert message in told["message"]
    *asked_before, last = scripts.of[script].statuses(f"{call}, overloaded")
    assert last == httpx.codes.TOO_MANY_REQUESTS
    assert set(asked_before) <= {httpx.codes.OK}  # BentoML's clients read the schema first


def test_infinity_s_client_tells_a_full_queue_by_none(scripts: ClientScripts) -> None:
    """As any other error."""
    assert scripts.of["infinity"].call("rank, overloaded")["answer"] == {"none": True, "status": 429}


def test_a_full_queue_says_when_to_come_back(server: Server) -> None:
    """Retry-After is a whole number of seconds of at least one, in every dialect: cohere's clients wait for just that."""
    with occupied(server):
        answers = [server.post(path, query="q", **{name: ["d"]}) for path, name in RANKING]
    assert [answer.status_code for answer in answers] == [429] * len(RANKING)
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers)


def test_clients_that_read_more_than_results_find_it(scripts: ClientScripts, server: Server) -> None:
    """What cohere, infinity_client and voyageai tell of a request beside its ranking, in their own types."""
    tokens = server.post(query=QUERY, documents=DOCUMENTS).json()["usage"]["total_tokens"]
    for version, meta in scripts.of["cohere"].call("meta")["answer"].items():
        assert meta.pop("id").startswith("rerank-")
        assert meta == {"version": version, "search_units": 1, "input_tokens": tokens}
    assert scripts.of["infinity"].call("meta")["answer"] == {
        "object": "rerank",
        "model": "default/not-specified",
        "total_tokens": tokens,
    }
    assert scripts.of["voyageai"].call("tokens")["answer"] == tokens


def test_what_a_client_says_about_truncation_is_heeded(scripts: ClientScripts) -> None:
    """Haystack's truncation_direction decides which end counts; LiteLLM's vLLM client lets long documents be cut."""
    [best] = scripts.of["haystack"].call("tei, cut from the left")["answer"]
    assert best["index"] == DOCUMENTS.index(BEST)
    assert {item["index"] for item in scripts.of["litellm"].call("vllm long")["answer"]} == {0, 1}


def test_a_single_document_has_a_score(scripts: ClientScripts, right: list[dict[str, Any]]) -> None:
    """As in the whole list, as rerankers asks for it."""
    assert scripts.of["rerankers"].call("one")["answer"] == pytest.approx(scores_in_order(right)[0], abs=1e-6)


def scores_in_order(results: list[dict[str, Any]]) -> list[float]:
    """Bring scores into the order of the documents."""
    return [item["relevance_score"] for item in sorted(results, key=lambda item: item["index"])]


def test_open_webui_gets_the_scores_of_all(server: Server, right: list[dict[str, Any]]) -> None:
    """It sorts by index and takes the scores for those of its documents, in order."""
    body = {"model": "any", "query": QUERY, "documents": DOCUMENTS, "top_n": len(DOCUMENTS)}
    results = server.post("/v1/rerank", **body).json()["results"]
    assert scores_in_order(results) == pytest.approx(scores_in_order(right), abs=1e-6)


def test_dify_gets_documents_and_never_an_empty_list(server: Server, right: list[dict[str, Any]]) -> None:
    """It sends `top_n: null`, reads `document.text`, and crashes on empty results."""
    body = {"model": "any", "query": QUERY, "documents": DOCUMENTS, "top_n": None, "return_documents": True}
    results = server.post("/v1/rerank", **body).json()["results"]
    read = [(item["index"], item["document"]["text"]) for item in results]
    assert read == [(item["index"], DOCUMENTS[item["index"]]) for item in right]


def test_ragflow_and_xinference_write_booleans_as_strings(server: Server, right: list[dict[str, Any]]) -> None:
    """`"return_documents": "true"`, beside a field that nobody knows."""
    body = {"model": "any", "query": QUERY, "return_documents": "true", "return_len": "true", "documents": DOCUMENTS}
    results = server.post("/v1/rerank", **body).json()["results"]
    assert [item["document"] for item in results] == [item["document"] for item in right]
    assert scores_in_order(results) == pytest.approx(scores_in_order(right), abs=1e-6)
