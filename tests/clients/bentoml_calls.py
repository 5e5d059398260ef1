"""BentoML's own clients."""

from __future__ import annotations

import asyncio
from typing import Any

import bentoml

from scenario import Example, play, ranked


def _told(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return ranked((item["index"], item["relevance_score"], item["document"]["text"]) for item in answer["results"])


def _sync(url: str) -> list[dict[str, Any]]:
    names = Example("bentoml.SyncHTTPClient", url).names
    with bentoml.SyncHTTPClient(url) as client:
        return _told(client.rerank(query=names["query"], documents=names["documents"], top_n=2))


def _async(url: str) -> list[dict[str, Any]]:
    names = Example("bentoml.AsyncHTTPClient", url).names

    async def ask() -> dict[str, Any]:
        async with bentoml.AsyncHTTPClient(url) as client:
            return await client.rerank(query=names["query"], documents=names["documents"], top_n=2)

    return _told(asyncio.run(ask()))


def _blank(url: str) -> None:
    with bentoml.SyncHTTPClient(url) as client:
        client.rerank(query=" ", documents=["Rome"])


play(["bentoml.SyncHTTPClient", "bentoml.AsyncHTTPClient"], {"sync": _sync, "async": _async, "blank": _blank})
