"""What GET /health says: one report, summed over all worker processes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

from bento_service import __version__
from bento_service.cache.shared import SharedCache
from bento_service.drain import Drain
from bento_service.edge import POST_ROUTES
from bento_service.exposition import Samples, totals
from bento_service.model_info import ModelInfo
from bento_service.scorer_link import ScorerLink
from bento_service.settings import Settings


@cache
def library_versions() -> dict[str, str]:
    """Versions of what decides on scores and behaviour."""
    return {"reranker": __version__} | {name: version(name) for name in ("bentoml", "torch", "transformers", "tokenizers")}


class Health:
    """Collects the report."""

    def __init__(
        self, *, tag: str, info: ModelInfo, links: Sequence[ScorerLink], shared: SharedCache, drain: Drain, settings: Settings
    ) -> None:
        self._tag = tag
        self._info = info
        self._links = links
        self._shared = shared
        self._drain = drain
        self._settings = settings

    async def report(self) -> dict[str, Any]:
        """The whole of /health; `status` is ok, degraded (some Scorers are down), down (all are) or draining (the server ends)."""
        samples = await asyncio.to_thread(totals)  # it reads many files
        return {
            "status": self._status(),
            "model": self._model(samples),
            "distributed_cache": await self._shared.statistics(),
            "micro_batcher": _batches(samples, enabled=self._settings.micro_batch_enabled),
            "requests": _requests(samples),
            "limits": {
                "max_documents": self._settings.max_documents,
                "max_body_bytes": self._settings.max_body_bytes,
                "max_parallel": self._settings.max_parallel or self._settings.max_parallel_requests,
                "max_queue": self._settings.max_queue_requests,
                "max_queue_pairs": self._settings.max_queue_pairs,
                "queue_timeout_seconds": self._settings.queue_timeout_seconds,
                "request_timeout_seconds": self._settings.request_timeout_seconds,
            },
            "versions": library_versions(),
        }

    def _status(self) -> str:
        up = sum(link.up for link in self._links)
        if not up:
            return "down"
        if self._drain.begun:
            return "draining"
        return "ok" if up == len(self._links) else "degraded"

    def _model(self, samples: Samples) -> dict[str, Any]:
        status = next((link.status for link in self._links if link.up), None)
        return {
            "tag": self._tag,
            "backend": "pytorch",
            "device": status.device if status else None,
            "quantization": status.quantization if status else None,
            "quantization_asked": self._settings.asked_quantization,
            "precision_reason": status.precision_reason if status else None,
            "weight_bytes": status.weight_bytes if status else None,
            "dtype": status.dtype if status else None,
            "kind": self._info.kind,
            "activation": self._info.activation,
            "source": self._info.source,
            "revision": self._info.revision,
            "max_length": status.max_length if status else self._settings.max_length or self._info.max_length,
            "fingerprint": status.fingerprint if status else None,
            "scorers": {"up": sum(link.up for link in self._links), "total": len(self._links)},
            "local_cache_size": int(samples.get(("reranker_cache_entries", ()), 0)),
        }


def _requests(samples: Samples) -> dict[str, Any]:
    """Requests of the rerank routes."""
    statuses: dict[str, float] = {}
    seconds = 0.0
    for (name, labels), value in samples.items():
        named = dict(labels)
        if named.get("route") not in POST_ROUTES:
            continue
        if name == "reranker_requests_total":
            statuses[named["status"]] = statuses.get(named["status"], 0.0) + value
        elif name == "reranker_request_seconds_sum":
            seconds += value
    total = sum(statuses.values())
    waits = samples.get(("reranker_stage_seconds_count", (("stage", "queue"),)), 0.0)
    waited = samples.get(("reranker_stage_seconds_sum", (("stage", "queue"),)), 0.0)
    return {
        "total": int(total),
        # A caller's own mistake (4xx) is no failure of the service; being turned away (429) is, and TEI's 424 is a failed score.
        "success_rate": round(1 - sum(statuses.get(code, 0.0) for code in ("424", "429", "500", "503", "504")) / total, 4)
        if total
        else None,
        "average_wait_seconds": round(waited / waits, 4) if waits else None,
        "average_processing_seconds": round(seconds / total, 4) if total else None,
        "waiting": int(samples.get(("reranker_requests_waiting", ()), 0)),
        "active": int(samples.get(("reranker_requests_active", ()), 0)),
    }


def _batches(samples: Samples, *, enabled: bool) -> dict[str, Any]:
    """What the Scorers did in batches; avg_batch_size counts pairs in a Scorer batch."""
    count = samples.get(("reranker_batch_pairs_count", ()), 0.0)
    pairs = samples.get(("reranker_batch_pairs_sum", ()), 0.0)
    calls = sum(value for (name, _), value in samples.items() if name == "reranker_scorer_calls_total")
    return {
        "enabled": enabled,
        "total_requests": int(calls),
        "total_batches": int(count),
        "avg_batch_size": round(pairs / count, 2) if count else 0.0,
    }
