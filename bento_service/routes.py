"""The routes beside BentoML's own, and the way of one rerank request through HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bento_service import metrics
from bento_service.dialects import COHERE_V2, Dialect
from bento_service.edge import ClientGone, client_gone_response, error_response, json_response, read_body, unless_gone
from bento_service.errors import RequestError
from bento_service.health import Health
from bento_service.openapi import document
from bento_service.pipeline import Pipeline
from bento_service.schemas import CacheCounts, CacheUse, cache_use, parse_json
from bento_service.settings import Settings


class Routes:
    """Turns HTTP into queries and results into HTTP."""

    def __init__(self, *, pipeline: Pipeline, health: Health, entry_metrics: metrics.EntryMetrics, settings: Settings) -> None:
        self._pipeline = pipeline
        self._health = health
        self._metrics = entry_metrics
        self._settings = settings

    async def rerank(self, request: Request, dialect: Dialect) -> Response:
        """Answer one rerank request; never raises a RequestError."""
        start = time.perf_counter()
        try:
            body = await read_body(request, self._settings.max_body_bytes)
            use = cache_use(request.headers.get("cache-control", ""))
            answer, counts = await unless_gone(request, self._answer(parse_json(body), dialect, start, use))
            headers = {
                "x-cache-hits": str(counts.hits),
                "x-cache-misses": str(counts.misses),
                "x-cache-shared": str(counts.shared),
            }
            return json_response(answer, headers=headers)
        except ClientGone:
            return client_gone_response()
        except RequestError as error:
            self._metrics.rejections.labels(error.code).inc()
            return error_response(error)

    async def answer(self, fields: dict[str, Any], dialect: Dialect, start: float) -> dict[str, Any]:
        """Answer the fields of a request in its dialect; start: on time.perf_counter(). Raises RequestError."""
        answer, _ = await self._answer(fields, dialect, start, CacheUse.FULL)
        return answer

    async def _answer(
        self, fields: dict[str, Any], dialect: Dialect, start: float, use: CacheUse
    ) -> tuple[dict[str, Any], CacheCounts]:
        query = dialect.read(fields, max_documents=self._settings.max_documents)
        self._metrics.stage_seconds.labels("parse").observe(time.perf_counter() - start)
        deadline = time.monotonic() + self._settings.request_timeout_seconds - (time.perf_counter() - start)
        result = await self._pipeline.rerank(query, deadline=deadline, use=use)
        return dialect.write(query, result, took_ms=1000 * (time.perf_counter() - start)), result.cache

    async def health(self) -> Response:
        """Tell people and gateways how the server is; 503 while no Scorer answers."""
        report = await self._health.report()
        return json_response(report, status=503 if report["status"] == "down" else 200)


def make_app(current: Callable[[], Routes]) -> Starlette:
    """Build the app that is mounted beside BentoML's routes; `current` finds the Routes once the service has started."""

    async def cohere_v2(request: Request) -> Response:
        return await current().rerank(request, COHERE_V2)

    async def health(_: Request) -> Response:
        return await current().health()

    async def exposition(_: Request) -> Response:
        return Response(metrics.exposition(), headers={"content-type": metrics.CONTENT_TYPE})

    async def docs(_: Request) -> Response:
        return json_response(document())

    return Starlette(
        routes=[
            Route("/v2/rerank", cohere_v2, methods=["POST"]),
            Route("/health", health),
            Route("/metrics", exposition),
            Route("/docs.json", docs),
        ]
    )
