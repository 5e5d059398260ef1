"""LangChain's CohereRerank, of langchain-cohere."""

from __future__ import annotations

from typing import Any

from langchain_core.documents import Document

from scenario import Example, play, ranked


def _compress(url: str) -> list[dict[str, Any]]:
    names = Example("langchain_cohere.CohereRerank", url).names
    documents = [Document(text, metadata={"place": place}) for place, text in enumerate(names["documents"])]
    best = names["client"].compress_documents(documents, names["query"])
    return ranked((item.metadata["place"], item.metadata["relevance_score"], item.page_content) for item in best)


def _blank(url: str) -> None:
    Example("langchain_cohere.CohereRerank", url).names["client"].rerank(["Rome"], " ")


play(["langchain_cohere.CohereRerank"], {"rank": _compress, "blank": _blank})
