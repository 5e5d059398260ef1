"""LlamaIndex's client of TEI."""

from __future__ import annotations

from typing import Any

from llama_index.core.schema import NodeWithScore, TextNode

from scenario import Example, play, ranked


def _rank(url: str) -> list[dict[str, Any]]:
    names = Example("llama_index TextEmbeddingInference", url).names
    return ranked((names["documents"].index(node.text), node.score, node.text) for node in names["answer"])


def _blank(url: str, texts: int) -> None:
    nodes = [NodeWithScore(node=TextNode(text="Rome")) for _ in range(texts)]
    Example("llama_index TextEmbeddingInference", url).names["client"].postprocess_nodes(nodes, query_str=" ")


play(
    ["llama_index TextEmbeddingInference"],
    {
        "rank": _rank,
        "blank": lambda url: _blank(url, 3),
        "blank, two texts": lambda url: _blank(url, 2),
    },
)
