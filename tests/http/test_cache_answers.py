"""What callers are told of the caches, and how they get around them."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from bento_service.pairs import Outcome
from fake_scorer import FakeScorer

DOCUMENTS = [f"cached {number}" for number in range(6)]


def _ask(
    client: TestClient, query: str, documents: list[str], cache_control: str = "", **fields: Any
) -> tuple[tuple[int, ...], Any]:
    """Rerank; hits, misses and shared of the headers, and the answer."""
    headers = {"cache-control": cache_control} if cache_control else {}
    answer = client.post("/v2/rerank", json={"query": query, "documents": documents, **fields}, headers=headers)
    counts = tuple(int(answer.headers[f"x-cache-{name}"]) for name in ("hits", "misses", "shared"))
    return counts, answer.json()


def _scores(answer: Any) -> dict[int, float]:
    return {result["index"]: result["relevance_score"] for result in answer["results"]}


def test_a_repeat_is_answered_from_the_cache_and_says_so(client: TestClient, scorer: FakeScorer) -> None:
    """Nothing is scored, and nothing but the counts differs."""
    first_counts, first = _ask(client, "repeat", DOCUMENTS)
    before = scorer.pairs
    second_counts, second = _ask(client, "repeat", DOCUMENTS)
    assert (first_counts, second_counts) == ((0, 6, 0), (6, 0, 0))
    assert scorer.pairs == before
    assert (first["meta"]["cached_documents"], second["meta"]["cached_documents"]) == (0, 6)
    assert _scores(first) == _scores(second)
    assert first["usage"] == second["usage"]


def test_only_what_is_not_known_is_scored(client: TestClient, scorer: FakeScorer) -> None:
    """48 of 50 known means 2 scored."""
    documents = [f"partial {number}" for number in range(50)]
    _ask(client, "partial", documents[:48])
    before = scorer.pairs
    counts, answer = _ask(client, "partial", documents)
    assert counts == (48, 2, 0)
    assert scorer.pairs - before == 2
    assert len(answer["results"]) == 50


def test_duplicates_count_as_what_their_text_is(client: TestClient) -> None:
    """The three counts together are the documents of the request."""
    _ask(client, "twins", ["a"])
    counts, _ = _ask(client, "twins", ["a", "b", "a", "b", "b"])
    assert counts == (2, 3, 0)


def test_no_store_neither_reads_nor_writes(client: TestClient, scorer: FakeScorer) -> None:
    """Even where the score is known; it wins over no-cache."""
    before = scorer.pairs
    assert _ask(client, "private", ["a", "b"], "no-store")[0] == (0, 2, 0)
    assert _ask(client, "private", ["a", "b"], "no-cache, No-Store")[0] == (0, 2, 0)
    assert _ask(client, "private", ["a", "b"])[0] == (0, 2, 0)
    assert _ask(client, "private", ["a", "b"], "no-store")[0] == (0, 2, 0)
    assert scorer.pairs - before == 8


def test_no_cache_computes_anew_and_stores(client: TestClient, scorer: FakeScorer) -> None:
    """For whoever asks next."""
    _ask(client, "fresh", ["a", "b"])
    before = scorer.pairs
    assert _ask(client, "fresh", ["a", "b"], "no-cache")[0] == (0, 2, 0)
    assert scorer.pairs - before == 2
    assert _ask(client, "fresh", ["a", "b"], "max-age=0")[0] == (2, 0, 0)


def test_raw_scores_share_entries_with_scores(client: TestClient) -> None:
    """The cache holds the logit or cosine."""
    _ask(client, "raw", ["a", "b"])
    counts, answer = _ask(client, "raw", ["a", "b"], raw_scores=True)
    assert counts == (2, 0, 0)
    assert all(-1 <= score <= 1 for score in _scores(answer).values())


@pytest.mark.parametrize("fields", [{"max_tokens_per_doc": 1}, {"instruction": "do"}, {"instruction": ""}])
def test_what_decides_on_a_score_decides_on_the_entry(client: TestClient, fields: dict[str, Any]) -> None:
    """Another limit or instruction finds nothing."""
    _ask(client, "options", ["a long document", "b"])
    assert _ask(client, "options", ["a long document", "b"], **fields)[0][0] == 0


def test_a_limit_beyond_the_window_is_no_limit(client: TestClient) -> None:
    """Some clients always send one."""
    _ask(client, "limit", ["a", "b"])
    assert _ask(client, "limit", ["a", "b"], max_tokens_per_doc=4096)[0] == (2, 0, 0)


def test_failures_are_not_remembered(client: TestClient, scorer: FakeScorer) -> None:
    """The next request computes again."""
    scorer.outcome = Outcome.FAILED
    try:
        assert client.post("/rerank", json={"query": "failure", "documents": ["a"]}).status_code == 500
    finally:
        scorer.outcome = Outcome.SCORED
    assert _ask(client, "failure", ["a"])[0] == (0, 1, 0)


def test_truncation_is_remembered_with_the_score(client: TestClient) -> None:
    """A hit reports it, and truncation=false refuses it."""
    long = "sea " * 400
    _ask(client, "cut", ["short", long])
    counts, answer = _ask(client, "cut", ["short", long])
    assert counts == (2, 0, 0)
    assert answer["meta"]["truncated_documents"] == [1]
    refused = client.post("/v2/rerank", json={"query": "cut", "documents": ["short", long], "truncation": False})
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "document_too_long"
    assert "document 1" in refused.json()["message"]


def test_health_tells_how_much_is_remembered(client: TestClient) -> None:
    """And that there is no Redis."""
    report = client.get("/health").json()
    assert report["distributed_cache"] == {
        "enabled": False,
        "connected": False,
        "state": "disabled",
        "cached_entries": 0,
        "keyspace_hits": 0,
        "keyspace_misses": 0,
    }
