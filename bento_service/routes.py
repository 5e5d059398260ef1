"""The routes beside BentoML's own, and the way of one request through HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bento_service.admission import Place
from bento_service.body import parse
from bento_service.catalog import Catalog
from bento_service.dialects.dialect import Dialect, Limits
from bento_service.dialects.objects import COHERE_V2, NATIVE, V1
from bento_service.dialects.score import SCORE
from bento_service.dialects.texts import TEI
from bento_service.drain import Drain
from bento_service.edge import OWNER, client_gone_response, error_response, json_response, route_of, unexpected, unless_gone
from bento_service.errors import RequestError
from bento_service.exposition import CONTENT_TYPE, Exposition
from bento_service.health import Health
from bento_service.intake import ClientGone, Intake, Share
from bento_service.metrics import EntryMetrics
from bento_service.openapi import document
from bento_service.page import page_response
from bento_service.pipeline import Pipeline
from bento_service.quota import Quota
from bento_service.schemas import CacheUse, RerankQuery, RerankResult, cache_use
from bento_service.settings import Settings

# Of one request to /score: as many pairs as a Scorer takes in one call.
_QUERIES_AT_ONCE = 32
Choice = Callable[[dict[str, Any]], Dialect]
# What a browser's page may read of an answer besides its body.
EXPOSED_HEADERS = (
    "retry-after",
    "x-request-id",
    "x-cache-hits",
    "x-cache-misses",
    "x-cache-shared",
    "x-compute-tokens",
    "x-total-time",
    "x-tokenization-time",
    "x-queue-time",
    "x-inference-time",
)


def native_or_tei(fields: dict[str, Any]) -> Dialect:
    """Choose the dialect of a body on /rerank: `texts` alone is TEI's."""
    return TEI if fields.get("texts") is not None and fields.get("documents") is None else NATIVE


class Routes:
    """Turns HTTP into queries and results into HTTP."""

    def __init__(
        self,
        *,
        pipeline: Pipeline,
        health: Health,
        exposition: Exposition,
        catalog: Catalog,
        quota: Quota,
        drain: Drain,
        entry_metrics: EntryMetrics,
        settings: Settings,
    ) -> None:
        self._pipeline = pipeline
        self._drain = drain
        self._quota = quota
        self._intake = Intake(
            max_bytes=settings.max_body_bytes,
            max_memory_bytes=settings.body_memory_bytes_per_worker,
            timeout_seconds=min(settings.body_timeout_seconds, settings.request_timeout_seconds),
        )
        self._health = health
        self._exposition = exposition
        self._metrics = entry_metrics
        self._settings = settings
        self.limits = Limits(
            documents=settings.max_documents,
            document_characters=settings.max_document_characters,
            chunks=settings.max_chunks,
        )
        self.catalog = catalog

    async def rank(self, request: Request, choose: Choice) -> Response:
        """Answer one request to rerank or score; raises nothing."""
        start = time.monotonic()
        try:
            with self._intake.share() as share:
                async with self._drain.bounded():
                    body = await self._intake.read(share, request)
                work = self._answer_body(request, share, body, choose, start)
                del body  # not kept here: it may wait long for its scores
                return await unless_gone(request, work)
        except ClientGone:
            return client_gone_response()
        except RequestError as error:
            return self._refuse(error, NATIVE)

    async def _answer_body(self, request: Request, share: Share, body: bytes, choose: Choice, start: float) -> Response:
        """Answer a request in the words of its dialect, whatever happens."""
        dialect: Dialect = NATIVE  # what cannot be read is answered in the words that most clients read
        try:
            reading = partial(parse, self._settings.max_documents)
            async with self._drain.bounded():
                fields = await self._intake.fields(share, body, reading, timeout_seconds=self._seconds_left(start))
                del body
                dialect = choose(fields)
                use = cache_use(request.headers.get("cache-control", ""))
                answer, results = await self._answer(fields, dialect, start, use, request.scope.get(OWNER))
            return json_response(answer, headers=_headers(results, time.monotonic() - start))
        except RequestError as error:
            return self._refuse(error, dialect)
        except Exception as error:  # noqa: BLE001  whatever it was, the client is told in its own words
            return error_response(unexpected(error, route_of(request.scope["path"])), dialect)

    def _refuse(self, error: RequestError, dialect: Dialect) -> Response:
        self._metrics.rejections.labels(error.code).inc()
        return error_response(error, dialect)

    def _seconds_left(self, start: float) -> float:
        return self._settings.request_timeout_seconds - (time.monotonic() - start)

    async def answer(self, fields: dict[str, Any], start: float) -> Any:
        """Answer the fields of a request to /rerank; start: on time.monotonic(). Raises RequestError."""
        answer, _ = await self._answer(fields, native_or_tei(fields), start, CacheUse.FULL)
        return answer

    async def _answer(
        self, fields: dict[str, Any], dialect: Dialect, start: float, use: CacheUse, owner: str | None = None
    ) -> tuple[Any, list[RerankResult]]:
        queries = dialect.read(fields, self.limits)
        self._metrics.stage("parse", start)
        deadline = time.monotonic() + self._seconds_left(start)
        with self._quota.hold(owner, sum(map(self._pipeline.pairs_of, queries))):
            results = await self._results(queries, deadline, use)
        return dialect.write(queries, results, took_ms=1000 * (time.monotonic() - start)), results

    async def _results(self, queries: Sequence[RerankQuery], deadline: float, use: CacheUse) -> list[RerankResult]:
        """Answer the queries of one request, a few at a time, with one place in the queue for all of them."""
        place, at_once = Place(), asyncio.Semaphore(_QUERIES_AT_ONCE)
        if len(queries) == 1:
            return [await self._pipeline.rerank(queries[0], deadline=deadline, use=use, place=place)]

        async def in_turn(query: RerankQuery) -> RerankResult:
            async with at_once:
                return await self._pipeline.rerank(query, deadline=deadline, use=use, place=place)

        tasks = [asyncio.create_task(in_turn(query)) for query in queries]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def health(self) -> Response:
        """Tell people and gateways how the server is; 503 while no Scorer answers."""
        report = await self._health.report()
        return json_response(report, status=503 if report["status"] == "down" else 200)

    async def metrics(self) -> Response:
        """Tell Prometheus what all worker processes count."""
        return Response(await self._exposition.text(), headers={"content-type": CONTENT_TYPE})


def _headers(results: Sequence[RerankResult], took_seconds: float) -> dict[str, str]:
    """What came from where, and TEI's timings in milliseconds."""
    numbers = {
        "x-cache-hits": sum(result.cache.hits for result in results),
        "x-cache-misses": sum(result.cache.misses for result in results),
        "x-cache-shared": sum(result.cache.shared for result in results),
        "x-compute-tokens": sum(result.token_count for result in results),
        "x-total-time": 1000 * took_seconds,
        "x-queue-time": 1000 * max(result.timing.queue for result in results),
        "x-tokenization-time": 1000 * max(result.timing.tokenization for result in results),
        "x-inference-time": 1000 * max(result.timing.inference for result in results),
    }
    return {name: str(round(number)) for name, number in numbers.items()}


def make_app(current: Callable[[], Routes]) -> Starlette:
    """Build the app that is mounted beside BentoML's routes; `current` finds the Routes once the service has started."""

    def ranking(path: str, dialect: Dialect) -> Route:
        async def endpoint(request: Request) -> Response:
            return await current().rank(request, lambda _: dialect)

        return Route(path, endpoint, methods=["POST"])

    async def health(_: Request) -> Response:
        return await current().health()

    async def info(_: Request) -> Response:
        return json_response(current().catalog.info())

    async def models(_: Request) -> Response:
        return json_response(current().catalog.models())

    async def exposition(_: Request) -> Response:
        return await current().metrics()

    async def docs(_: Request) -> Response:
        return json_response(document(current().limits))

    async def page(_: Request) -> Response:
        return page_response()

    return Starlette(
        routes=[
            ranking("/v1/rerank", V1),
            ranking("/v2/rerank", COHERE_V2),
            ranking("/score", SCORE),
            ranking("/v1/score", SCORE),
            Route("/health", health),
            Route("/info", info),
            Route("/models", models),
            Route("/v1/models", models),
            Route("/metrics", exposition),
            Route("/docs.json", docs),
            Route("/", page),
        ]
    )
