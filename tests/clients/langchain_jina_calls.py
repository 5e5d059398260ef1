"""LangChain's JinaRerank, of langchain-community."""

from __future__ import annotations

from typing import Any

from langchain_core.documents import Document

from scenario import Example, play, ranked


def _compress(url: str) -> list[dict[str, Any]]:
    names = Example("langchain_community JinaRerank", url).names
    documents = [Document(text, metadata={"place": place}) for place, text in enumerate(names["documents"])]
    best = names["client"].compress_documents(documents, names["query"])
    return ranked((item.metadata["place"], item.metadata["relevance_score"], item.page_content) for item in best)


def _blank(url: str) -> None:
    Example("langchain_community JinaRerank", url).names["client"].rerank(["Rome"], " ")


play(["langchain_community JinaRerank"], {"rank": _compress, "blank": _blank})
