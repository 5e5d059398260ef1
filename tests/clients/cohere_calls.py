"""The cohere package: its clients of both versions of the API."""

from __future__ import annotations

import asyncio
from typing import Any

import cohere

from scenario import Example, play, ranked


def _v2(url: str) -> list[dict[str, Any]]:
    names = Example("cohere.ClientV2", url).names
    answer = names["client"].rerank(
        model="any", query=names["query"], documents=names["documents"], top_n=2, max_tokens_per_doc=512
    )
    return ranked((item.index, item.relevance_score, None) for item in answer.results)


def _async_v2(url: str) -> list[dict[str, Any]]:
    names = Example("cohere.ClientV2", url).names
    client = cohere.AsyncClientV2(api_key="any", base_url=url)
    answer = asyncio.run(client.rerank(model="any", query=names["query"], documents=names["documents"], top_n=2))
    return ranked((item.index, item.relevance_score, None) for item in answer.results)


def _v1(url: str) -> list[dict[str, Any]]:
    answer = Example("cohere.Client", url).names["answer"]
    return ranked((item.index, item.relevance_score, item.document.text) for item in answer.results)


def _v1_fields(url: str) -> list[dict[str, Any]]:
    """Rank objects by one of their fields, which is not the one that `text` would be."""
    names = Example("cohere.Client", url).names
    documents = [{"text": "the same for all", "abstract": text} for text in names["documents"]]
    answer = names["client"].rerank(
        query=names["query"], documents=documents, rank_fields=["abstract"], top_n=2, return_documents=True
    )
    return ranked((item.index, item.relevance_score, item.document.text) for item in answer.results)


def _meta(url: str) -> dict[str, Any]:
    """What both versions tell about a request, as the package's own types."""
    answers = {
        version: Example(name, url).names["answer"] for version, name in (("1", "cohere.Client"), ("2", "cohere.ClientV2"))
    }
    return {
        version: {
            "id": answer.id,
            "version": answer.meta.api_version.version,
            "search_units": answer.meta.billed_units.search_units,
            "input_tokens": answer.meta.tokens.input_tokens,
        }
        for version, answer in answers.items()
    }


def _blank(url: str) -> None:
    Example("cohere.ClientV2", url).names["client"].rerank(model="any", query=" ", documents=["Rome"])


def _v1_blank(url: str) -> None:
    Example("cohere.Client", url).names["client"].rerank(query=" ", documents=["Rome"])


play(
    ["cohere.ClientV2", "cohere.Client"],
    {
        "v2": _v2,
        "async v2": _async_v2,
        "v1": _v1,
        "v1 rank_fields": _v1_fields,
        "meta": _meta,
        "v2 blank": _blank,
        "v1 blank": _v1_blank,
    },
)
