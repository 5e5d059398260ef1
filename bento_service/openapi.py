"""Our own OpenAPI document: BentoML's knows neither mounted routes, nor null, nor our error bodies."""

from __future__ import annotations

from functools import cache
from typing import Any

from bento_service import __version__
from bento_service.errors import RequestError
from bento_service.schemas import ObjectRequest

_EXAMPLE = {
    "query": "what is a reranker?",
    "documents": ["A reranker sorts documents by how well they answer a query.", "Bread is baked from flour and water."],
    "top_n": 1,
}
_STRING, _NUMBER, _INTEGER = {"type": "string"}, {"type": "number"}, {"type": "integer"}
_RESULT = {
    "type": "object",
    "required": ["index", "relevance_score"],
    "properties": {
        "index": {"type": "integer", "description": "Place of the document in the request."},
        "relevance_score": {"type": "number", "description": "The model's score; results are sorted by it, ties by index."},
        "score": {"type": "number", "description": "The same, on /rerank."},
        "rank": {"type": "integer", "description": "1 is best; on /rerank."},
        "id": {"description": "The id the document came with, if it had one."},
        "document": {"type": "object", "properties": {"text": _STRING}, "description": "If return_documents is true."},
    },
}
ANSWER: dict[str, Any] = {
    "type": "object",
    "required": ["id", "object", "created", "model", "results", "usage", "meta"],
    "properties": {
        "id": _STRING,
        "object": {"type": "string", "const": "rerank"},
        "created": {"type": "integer", "description": "Unix time, seconds."},
        "model": {"type": "string", "description": "The model named in the request, else the one served."},
        "results": {"type": "array", "items": _RESULT},
        "usage": {
            "type": "object",
            "description": "Tokens of all pairs (query, document, special tokens) after truncation, duplicates included.",
            "properties": {"prompt_tokens": _INTEGER, "total_tokens": _INTEGER},
        },
        "meta": {
            "type": "object",
            "properties": {
                "api_version": {"type": "object", "properties": {"version": _STRING}},
                "billed_units": {"type": "object", "properties": {"search_units": _INTEGER}},
                "tokens": {"type": "object", "properties": {"input_tokens": _INTEGER, "output_tokens": _INTEGER}},
                "cached_documents": _INTEGER,
                "truncated_documents": {
                    "type": "array",
                    "items": _INTEGER,
                    "description": "Indexes of documents that lost text.",
                },
                "warnings": {"type": "array", "items": _STRING},
            },
        },
        "took_ms": _NUMBER,
    },
}
_ERROR = {
    "type": "object",
    "required": ["message", "detail", "error"],
    "properties": {
        "message": _STRING,
        "detail": _STRING,
        "error": {
            "type": "object",
            "properties": {
                "message": _STRING,
                "type": _STRING,
                "param": {"anyOf": [_STRING, {"type": "null"}]},
                "code": _STRING,
            },
        },
    },
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
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/RerankRequest"}, "example": _EXAMPLE},
            },
        },
        "responses": {
            "200": {
                "description": "The documents, best first",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/RerankAnswer"}}},
            }
        }
        | {
            status: {
                "description": ", ".join(sorted(set(codes))),
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
