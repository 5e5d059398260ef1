"""LlamaIndex's client of Cohere."""

from __future__ import annotations

from typing import Any

from llama_index.core.schema import NodeWithScore, TextNode

from scenario import Example, play, ranked


def _rank(url: str) -> list[dict[str, Any]]:
    names = Example("llama_index CohereRerank", url).names
    return ranked((names["documents"].index(node.text), node.score, node.text) for node in names["answer"])


def _blank(url: str) -> None:
    nodes = [NodeWithScore(node=TextNode(text="Rome"))]
    Example("llama_index CohereRerank", url).names["client"].postprocess_nodes(nodes, query_str=" ")


play(["llama_index CohereRerank"], {"rank": _rank, "blank": _blank})
