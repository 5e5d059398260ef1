"""The rerankers package, as a client of each API that the service speaks."""

from __future__ import annotations

from typing import Any

from rerankers.models.api_rankers import APIRanker

from scenario import Call, Example, play, ranked

_PATHS = {"text-embeddings-inference": "/rerank", "jina": "/v1/rerank", "cohere": "/v1/rerank", "voyage": "/v1/rerank"}


def _rank(provider: str) -> Call:
    def call(url: str) -> list[dict[str, Any]]:
        names = Example("rerankers APIRanker", url).names
        client = APIRanker("any", api_key="any", api_provider=provider, url=url + _PATHS[provider])
        answer = client.rank(names["query"], names["documents"])
        return ranked((item.doc_id, item.score, item.text) for item in answer.results)

    return call


def _score(url: str) -> float:
    """One pair's score, which the package asks for with a document object."""
    names = Example("rerankers APIRanker", url).names
    answer = names["client"].rank(names["query"], [names["documents"][0]])
    return answer.results[0].score


def _blank(provider: str) -> Call:
    return lambda url: APIRanker("any", api_key="any", api_provider=provider, url=url + _PATHS[provider]).rank(" ", ["Rome"])


play(
    ["rerankers APIRanker"],
    {
        "one": _score,
        **{provider: _rank(provider) for provider in _PATHS},
        **{f"{provider} blank": _blank(provider) for provider in _PATHS},
    },
)
