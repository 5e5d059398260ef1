"""Our own OpenAPI document: BentoML's knows neither mounted routes, nor null, nor our error bodies."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from bento_service import __version__
from bento_service.answer_shapes import ANSWER, ERROR, HEALTH, INFO, MODELS, SCORE_ANSWER, TEXTS_ANSWER, TEXTS_ERROR
from bento_service.dialects.dialect import Dialect, Limits
from bento_service.dialects.objects import NATIVE, ObjectRequest
from bento_service.dialects.request_shapes import document_shape, with_limits
from bento_service.dialects.score import SCORE, ScoreRequest
from bento_service.dialects.texts import TEI, TextsRequest
from bento_service.errors import InvalidRequest, RequestError

_EXAMPLE: dict[str, Any] = {
    "query": "what is a reranker?",
    "documents": ["A reranker sorts documents by how well they answer a query.", "Bread is baked from flour and water."],
    "top_n": 1,
}
_TEXTS_EXAMPLE: dict[str, Any] = {"query": _EXAMPLE["query"], "texts": _EXAMPLE["documents"], "return_text": True}
_SCORE_EXAMPLE: dict[str, Any] = {"queries": _EXAMPLE["query"], "documents": _EXAMPLE["documents"]}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait, a whole number of at least 1.", "schema": {"type": "integer"}}}
_RETRIED = ("429", "503")
_UNREAD_STATUSES = (401, 408, 413, 415)
_UNREAD_CODES = ("invalid_json", "invalid_encoding")
_FINER_CODES = (*_UNREAD_CODES, "documents_empty", "documents_too_many", "document_too_large")
_CACHE_CONTROL = {
    "name": "Cache-Control",
    "in": "header",
    "required": False,
    "description": "`no-cache`: compute every pair anew, and store. `no-store`: neither read nor write a cache. Anything else: use the caches.",
    "schema": {"type": "string"},
}
_HEADERS = {
    name: {"description": meaning, "schema": {"type": "integer"}}
    for name, meaning in (
        ("x-cache-hits", "Documents whose score came from a cache."),
        ("x-cache-misses", "Documents whose score was computed for this request."),
        ("x-cache-shared", "Documents whose score another request or server was computing already."),
        ("x-compute-tokens", "The same as usage.prompt_tokens."),
        ("x-total-time", "Milliseconds in all."),
        ("x-queue-time", "Milliseconds until the first batch with pairs of the request began."),
        ("x-tokenization-time", "Milliseconds of tokenising."),
        ("x-inference-time", "Milliseconds from then until the last batch's end; 0 where nothing was computed."),
    )
}
_ID = "The request's id, in its answer and in the server's log lines about it: the caller's own, of 1 to 128 printable characters without spaces, or a new one."
_ID_HEADER = {"x-request-id": {"description": _ID, "schema": {"type": "string"}}}
_REQUEST_ID = {"name": "X-Request-Id", "in": "header", "required": False, "description": _ID, "schema": {"type": "string"}}


@cache
def document(limits: Limits) -> dict[str, Any]:
    """Build the document served at /docs.json by a server with these limits."""
    requests = {
        "RerankRequest": ObjectRequest.model_json_schema(by_alias=False) | {"examples": [_EXAMPLE]},
        "TextsRequest": TextsRequest.model_json_schema() | {"examples": [_TEXTS_EXAMPLE]},
        "ScoreRequest": ScoreRequest.model_json_schema(by_alias=False) | {"examples": [_SCORE_EXAMPLE]},
    }
    answers = {
        "RerankAnswer": ANSWER,
        "TextsAnswer": TEXTS_ANSWER,
        "ScoreAnswer": SCORE_ANSWER,
        "Models": MODELS,
        "Health": HEALTH,
        "Info": INFO,
        "Error": ERROR,
        "TextsError": TEXTS_ERROR,
    }
    objects = ("RerankRequest", "RerankAnswer", NATIVE)
    texts = ("TextsRequest", "TextsAnswer", TEI)
    score = _post("Score pairs without ranking: vLLM", [("ScoreRequest", "ScoreAnswer", SCORE)])
    models = _get("The model that is served, as OpenAI's clients ask for it", "application/json", "Models")
    alive = _get("200 unless a worker process is gone for long", "text/plain", also_503=True, probe=True)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Reranker",
            "version": __version__,
            "description": "Scores every (query, document) pair and returns the documents best first.",
        },
        "paths": {
            "/rerank": {
                "post": _post(
                    "Rerank: the service's own format (also Infinity, vLLM, llama.cpp), or TEI's where there are `texts`",
                    [objects, texts],
                )
            },
            "/v1/rerank": {"post": _post("Rerank: Jina, Cohere v1, Voyage, Xinference", [objects])},
            "/v2/rerank": {"post": _post("Rerank: Cohere v2", [objects])},
            "/score": {"post": score},
            "/v1/score": {"post": score},
            "/models": {"get": models},
            "/v1/models": {"get": models},
            "/info": {"get": _get("The model and the limits, as TEI names them", "application/json", "Info")},
            "/health": {
                "get": _get("State of the service, for people and gateways", "application/json", "Health", also_503=True)
            },
            "/livez": {"get": alive},
            "/healthz": {"get": alive},
            "/readyz": {"get": _get("200 while a model worker answers", "text/plain", also_503=True, probe=True)},
            "/metrics": {"get": _get("Prometheus metrics of all worker processes", "text/plain")},
            "/docs.json": {"get": _get("This document", "application/json")},
            "/schema.json": {"get": _get("What BentoML's own clients read", "application/json")},
            "/": {"get": _get("A page to try the service on", "text/html")},
        },
        "components": {
            "schemas": with_limits(requests, limits) | {"Document": document_shape(limits)} | answers,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
        # Keys are off by default: without is one of the ways.
        "security": [{}, {"bearer": []}, {"key": []}],
    }


def _refs(names: Sequence[str]) -> dict[str, Any]:
    refs = [{"$ref": f"#/components/schemas/{name}"} for name in names]
    return refs[0] if len(refs) == 1 else {"anyOf": refs}


def _post(summary: str, formats: Sequence[tuple[str, str, Dialect]]) -> dict[str, Any]:
    """Describe a route: of each format it takes the request's schema, the answer's, and who words the errors."""
    requests, answers, dialects = zip(*formats, strict=True)
    return {
        "summary": summary,
        "parameters": [_CACHE_CONTROL, _REQUEST_ID],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _refs(requests)}},
        },
        "responses": {
            "200": {
                "description": "The answer",
                "headers": _HEADERS | _ID_HEADER,
                "content": {"application/json": {"schema": _refs(answers)}},
            }
        }
        | _failures(dialects),
    }


def _failures(dialects: Sequence[Dialect]) -> dict[str, Any]:
    codes: dict[str, set[str]] = {}
    bodies: dict[str, list[str]] = {}
    for error in _tree(RequestError):
        for code in (error.code, *(_FINER_CODES if error is InvalidRequest else ())):
            # What fails before a body is understood is told in the words that most clients read.
            unread = error.status in _UNREAD_STATUSES or code in _UNREAD_CODES
            for dialect in [NATIVE] if unread else dialects:
                status, body = dialect.error(error("", code=code))
                codes.setdefault(str(status), set()).add(code)
                name = "Error" if "message" in body else "TextsError"
                if name not in bodies.setdefault(str(status), []):
                    bodies[str(status)].append(name)
    return {
        status: {
            "description": ", ".join(sorted(codes[status])),
            "headers": _ID_HEADER | (_RETRY_AFTER if status in _RETRIED else {}),
            "content": {"application/json": {"schema": _refs(bodies[status])}},
        }
        for status in sorted(codes)
    }


def _get(
    summary: str, media_type: str, schema: str | None = None, *, also_503: bool = False, probe: bool = False
) -> dict[str, Any]:
    """Describe a page or, for everybody whatever keys there are, a probe."""
    answer = {"description": summary, "content": {media_type: {"schema": _refs([schema])} if schema else {}}}
    refused = {
        "description": "unauthorized: a key is needed, if the server has any and does not leave this open",
        "content": {"application/json": {"schema": _refs(["Error"])}},
    }
    more = ({"503": answer} if also_503 else {}) | ({} if probe else {"401": refused})
    return {"summary": summary, "responses": {"200": answer} | more} | ({"security": []} if probe else {})


def _tree(root: type[RequestError]) -> list[type[RequestError]]:
    return [root, *(leaf for branch in root.__subclasses__() for leaf in _tree(branch))]
