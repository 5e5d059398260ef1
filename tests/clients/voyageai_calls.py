"""The voyageai package."""

from __future__ import annotations

import asyncio
from typing import Any

import voyageai

from scenario import Example, example, play, ranked


def _rank(url: str) -> list[dict[str, Any]]:
    answer = Example("voyageai", url).names["answer"]
    return ranked((item.index, item.relevance_score, item.document) for item in answer.results)


def _async(url: str) -> list[dict[str, Any]]:
    names = Example("voyageai", url).names
    client = voyageai.AsyncClient(api_key="any", base_url=url + "/v1")
    answer = asyncio.run(client.rerank(names["query"], names["documents"], model="any", top_k=2))
    return ranked((item.index, item.relevance_score, item.document) for item in answer.results)


def _tokens(url: str) -> int:
    return Example("voyageai", url).names["answer"].total_tokens


def _blank(url: str) -> None:
    Example("voyageai", url).names["client"].rerank(" ", ["Rome"], model="any")


def _too_long(url: str) -> None:
    Example("voyageai", url).names["client"].rerank("q", ["short", "long " * 2000], model="any", truncation=False)


def _once(url: str) -> None:
    """As the package is by default: one attempt."""
    voyageai.Client(api_key="any", base_url=url + "/v1").rerank("q", ["Rome"], model="any")


play(
    ["voyageai"],
    {
        "rank": _rank,
        "async": _async,
        "tokens": _tokens,
        "blank": _blank,
        "too long": _too_long,
    },
    overloaded={"voyageai": example("voyageai"), "one attempt": _once},
)
