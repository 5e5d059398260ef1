"""Haystack's rankers for TEI and for Cohere."""

from __future__ import annotations

from typing import Any

from haystack import Document
from haystack_integrations.components.rankers.huggingface_api import TruncationDirection

from scenario import Call, Example, play, ranked


def _rank(name: str) -> Call:
    def call(url: str) -> list[dict[str, Any]]:
        names = Example(name, url).names
        return ranked((names["documents"].index(item.content), item.score, item.content) for item in names["answer"])

    return call


def _from_the_left(url: str) -> list[dict[str, Any]]:
    """What counts of an over-long text is its end."""
    names = Example("haystack HuggingFaceTEIRanker", url).names
    texts = ["bread " * 500 + text for text in names["documents"]]
    documents = [Document(content=text) for text in texts]
    answer = names["client"].run(names["query"], documents, top_k=1, truncation_direction=TruncationDirection.LEFT)
    return ranked((texts.index(item.content), item.score, None) for item in answer["documents"])


def _blank(name: str) -> Call:
    return lambda url: Example(name, url).names["client"].run(" ", [Document(content="Rome")])


_TEI, _COHERE = "haystack HuggingFaceTEIRanker", "haystack CohereRanker"
play(
    [_TEI, _COHERE],
    {
        "tei": _rank(_TEI),
        "cohere": _rank(_COHERE),
        "tei, cut from the left": _from_the_left,
        "tei blank": _blank(_TEI),
        "cohere blank": _blank(_COHERE),
    },
)
