"""The infinity_client package."""

from __future__ import annotations

from typing import Any

import infinity_client
from infinity_client.api.default import rerank
from infinity_client.models import RerankInput

from scenario import Example, play, ranked


def _rank(url: str) -> list[dict[str, Any]]:
    answer = Example("infinity_client", url).names["answer"]
    return ranked((item.index, item.relevance_score, item.document["text"]) for item in answer.results)


def _meta(url: str) -> dict[str, Any]:
    answer = Example("infinity_client", url).names["answer"]
    return {"object": answer.object_.value, "model": answer.model, "total_tokens": answer.usage.total_tokens}


def _failed(url: str, query: str = "q") -> dict[str, Any]:
    """Whether the answer is None, which is how this client tells an error, and the status for those who ask."""
    answer = rerank.sync_detailed(client=infinity_client.Client(base_url=url), body=RerankInput(query, ["Rome"]))
    return {"none": answer.parsed is None, "status": answer.status_code}


def _blank_raised(url: str) -> None:
    client = infinity_client.Client(base_url=url, raise_on_unexpected_status=True)
    rerank.sync(client=client, body=RerankInput(" ", ["Rome"]))


play(
    ["infinity_client"],
    {
        "rank": _rank,
        "meta": _meta,
        "blank": lambda url: _failed(url, " "),
        "blank, raised": _blank_raised,
    },
    overloaded={"rank": _failed},
)
