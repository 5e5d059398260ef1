"""Our own OpenAPI document: BentoML's knows neither mounted routes, nor null, nor our error bodies."""

from __future__ import annotations

from functools import cache
from typing import Any

from bento_service import __version__
from bento_service.errors import RequestError
from bento_service.schemas import ObjectRequest

_EXAMPLE: dict[str, Any] = {
    "query": "what is a reranker?",
    "documents": ["A reranker sorts documents by how well they answer a query.", "Bread is baked from flour and water."],
    "top_n": 1,
}
_ANSWER_EXAMPLE = {
    "id": "rerank-3f0c6d0e-7f0b-4d0e-9d62-0b8f4f3e6d5a",
    "object": "rerank",
    "created": 1795295619,
    "model": "all-minilm-l6-v2:03340d20e188f749",
    "results": [{"index": 0, "relevance_score": 0.87, "score": 0.87, "rank": 1, "document": {"text": _EXAMPLE["documents"][0]}}],
    "usage": {"prompt_tokens": 42, "total_tokens": 42},
    "meta": {
        "api_version": {"version": "2"},
        "billed_units": {"search_units": 1},
        "tokens": {"input_tokens": 42, "output_tokens": 0},
        "cached_documents": 0,
        "truncated_documents": [],
        "warnings": [],
    },
    "took_ms": 30.8,
}
_NO_DOCUMENTS = "documents is empty: give at least one"
_ERROR_EXAMPLE = {
    "message": _NO_DOCUMENTS,
    "detail": _NO_DOCUMENTS,
    "error": {"message": _NO_DOCUMENTS, "type": "invalid_request_error", "param": "documents", "code": "documents_empty"},
}


def _field(kind: str, meaning: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "description": meaning, **more}


def _record(meaning: str, properties: dict[str, Any], *, required: list[str] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "description": meaning,
        "properties": properties,
        "required": list(properties) if required is None else required,
        **more,
    }


_RESULT = _record(
    "One document's place in the ranking.",
    {
        "index": _field("integer", "Place of the document in the request."),
        "relevance_score": _field("number", "The model's score; results are sorted by it, ties by index."),
        "score": _field("number", "The same as relevance_score; on /rerank."),
        "rank": _field("integer", "1 is best; on /rerank."),
        "id": {"description": "The id the document came with, if it had one."},
        "document": _record("The document, if return_documents is true.", {"text": _field("string", "Its text.")}),
    },
    required=["index", "relevance_score"],
)
ANSWER: dict[str, Any] = _record(
    "The documents, best first.",
    {
        "id": _field("string", "A name for this answer, unlike any other's."),
        "object": _field("string", "Always `rerank`.", const="rerank"),
        "created": _field("integer", "When the answer was made: Unix time, seconds."),
        "model": _field("string", "The model named in the request, else the one served."),
        "results": _field("array", "Highest score first; identical documents all come back.", items=_RESULT),
        "usage": _record(
            "Tokens of all pairs (query, document, special tokens) after truncation, duplicates included.",
            {
                "prompt_tokens": _field("integer", "The sum over all documents."),
                "total_tokens": _field("integer", "The same: a reranker writes no tokens."),
            },
        ),
        "meta": _record(
            "What happened on the way.",
            {
                "api_version": _record("Cohere's number for this format.", {"version": _field("string", "`2`.")}),
                "billed_units": _record(
                    "As Cohere counts.", {"search_units": _field("integer", "One for each hundred documents, rounded up.")}
                ),
                "tokens": _record(
                    "usage in Cohere's words.",
                    {
                        "input_tokens": _field("integer", "The same as usage.prompt_tokens."),
                        "output_tokens": _field("integer", "Always 0."),
                    },
                ),
                "cached_documents": _field("integer", "Documents whose score came from a cache."),
                "truncated_documents": _field("array", "Indexes of the documents that lost text.", items={"type": "integer"}),
                "warnings": _field("array", "What was asked for and could not be done.", items={"type": "string"}),
            },
        ),
        "took_ms": _field("number", "Milliseconds from the request's first byte read to its answer."),
    },
    examples=[_ANSWER_EXAMPLE],
)
_ERROR = _record(
    "Every error of the rerank routes; the clients of all formats find what they look for.",
    {
        "message": _field("string", "What is wrong and what to do."),
        "detail": _field("string", "The same."),
        "error": _record(
            "The same as OpenAI's clients expect it.",
            {
                "message": _field("string", "The same."),
                "type": _field("string", "The kind of error."),
                "param": {"anyOf": [{"type": "string"}, {"type": "null"}], "description": "The field at fault, if it is one."},
                "code": _field("string", "A stable name for programs."),
            },
        ),
    },
    examples=[_ERROR_EXAMPLE],
)
_RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait, a whole number of at least 1.", "schema": {"type": "integer"}}}
_RETRIED = ("429", "503")
_CACHE_CONTROL = {
    "name": "Cache-Control",
    "in": "header",
    "required": False,
    "description": "`no-cache`: compute every pair anew, and store. `no-store`: neither read nor write a cache. Anything else: use the caches.",
    "schema": {"type": "string"},
}
_CACHE_HEADERS = {
    f"x-cache-{name}": {"description": f"Documents whose score {meaning}.", "schema": {"type": "integer"}}
    for name, meaning in (
        ("hits", "came from a cache"),
        ("misses", "was computed for this request"),
        ("shared", "another request or server was computing already"),
    )
}


@cache
def document() -> dict[str, Any]:
    """Build the document served at /docs.json."""
    request = ObjectRequest.model_json_schema(by_alias=False)
    request["examples"] = [_EXAMPLE]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Reranker",
            "version": __version__,
            "description": "Scores every (query, document) pair and returns the documents best first.",
        },
        "paths": {
            "/rerank": {"post": _rerank("Rerank, the service's own format (also Infinity, vLLM, llama.cpp)")},
            "/v2/rerank": {"post": _rerank("Rerank, Cohere v2")},
            "/health": {"get": _get("State of the service, for people and gateways", "application/json", also_503=True)},
            "/livez": {"get": _get("200 unless a worker process is gone for long", "text/plain", also_503=True)},
            "/readyz": {"get": _get("200 while a model worker answers", "text/plain", also_503=True)},
            "/metrics": {"get": _get("Prometheus metrics of all worker processes", "text/plain")},
        },
        "components": {"schemas": {"RerankRequest": request, "RerankAnswer": ANSWER, "Error": _ERROR}},
    }


def _rerank(summary: str) -> dict[str, Any]:
    failures: dict[str, list[str]] = {}
    for error in _tree(RequestError):
        failures.setdefault(str(error.status), []).append(error.code)
    return {
        "summary": summary,
        "parameters": [_CACHE_CONTROL],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/RerankRequest"}, "example": _EXAMPLE},
            },
        },
        "responses": {
            "200": {
                "description": "The documents, best first",
                "headers": _CACHE_HEADERS,
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/RerankAnswer"}}},
            }
        }
        | {
            status: {
                "description": ", ".join(sorted(set(codes))),
                **({"headers": _RETRY_AFTER} if status in _RETRIED else {}),
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            }
            for status, codes in sorted(failures.items())
        },
    }


def _get(summary: str, media_type: str, *, also_503: bool = False) -> dict[str, Any]:
    answer = {"description": summary, "content": {media_type: {}}}
    return {"summary": summary, "responses": {"200": answer} | ({"503": answer} if also_503 else {})}


def _tree(root: type[RequestError]) -> list[type[RequestError]]:
    return [root, *(leaf for branch in root.__subclasses__() for leaf in _tree(branch))]
