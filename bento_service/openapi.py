"""Our own OpenAPI document: BentoML's knows neither mounted routes, nor null, nor our error bodies."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from bento_service import __version__
from bento_service.dialects.dialect import Dialect
from bento_service.dialects.objects import NATIVE, ObjectRequest
from bento_service.dialects.score import ScoreRequest
from bento_service.dialects.texts import TEI, TextsRequest
from bento_service.errors import InvalidRequest, RequestError

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
        "document_span": _record(
            "With `long_documents: chunk`: the window that scored best.",
            {
                "start": _field("integer", "Its first character in the document."),
                "end": _field("integer", "The character behind its last."),
            },
        ),
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
                "api_version": _record(
                    "Cohere's number for this format.", {"version": _field("string", "`1` on /v1/rerank, else `2`.")}
                ),
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
        "data": _field(
            "array",
            "Indexes and scores of `results` once more, for Voyage's clients; on /v1/rerank.",
            items=_record(
                "One document's place.",
                {"index": _field("integer", "As in results."), "relevance_score": _field("number", "As in results.")},
            ),
        ),
    },
    required=["id", "object", "created", "model", "results", "usage", "meta", "took_ms"],
    examples=[_ANSWER_EXAMPLE],
)
_TEXTS_ANSWER = _field(
    "array",
    "The texts, best first.",
    items=_record(
        "One text's place in the ranking.",
        {
            "index": _field("integer", "Place of the text in the request."),
            "score": _field("number", "The model's score."),
            "text": _field("string", "The text, if return_text is true."),
        },
        required=["index", "score"],
    ),
)
_SCORE_ANSWER = _record(
    "The scores, in the order of the documents.",
    {
        "id": _field("string", "A name for this answer, unlike any other's."),
        "object": _field("string", "Always `list`.", const="list"),
        "created": _field("integer", "When the answer was made: Unix time, seconds."),
        "model": _field("string", "The model named in the request, else the one served."),
        "data": _field(
            "array",
            "One for each document.",
            items=_record(
                "One pair.",
                {
                    "index": _field("integer", "Place of the document in the request."),
                    "object": _field("string", "Always `score`.", const="score"),
                    "score": _field("number", "The model's score."),
                },
            ),
        ),
        "usage": _record(
            "Tokens of all pairs.",
            {"prompt_tokens": _field("integer", "As on /rerank."), "total_tokens": _field("integer", "The same.")},
        ),
    },
)
_MODELS = _record(
    "The models: there is one.",
    {
        "object": _field("string", "Always `list`.", const="list"),
        "data": _field(
            "array",
            "One model.",
            items=_record(
                "The model.",
                {
                    "id": _field("string", "Its tag."),
                    "object": _field("string", "Always `model`.", const="model"),
                    "created": _field("integer", "When it was saved: Unix time, seconds."),
                    "owned_by": _field("string", "Where it came from."),
                },
            ),
        ),
    },
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
_TEXTS_ERROR = _record(
    "Every error of a request with `texts` alone, as TEI words it.",
    {"error": _field("string", "What is wrong and what to do."), "error_type": _field("string", "The kind of error.")},
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
_HEADERS = {
    name: {"description": meaning, "schema": {"type": "integer"}}
    for name, meaning in (
        ("x-cache-hits", "Documents whose score came from a cache."),
        ("x-cache-misses", "Documents whose score was computed for this request."),
        ("x-cache-shared", "Documents whose score another request or server was computing already."),
        ("x-compute-tokens", "The same as usage.prompt_tokens."),
        ("x-total-time", "Milliseconds in all."),
        ("x-queue-time", "Milliseconds until the first pair went to a model worker."),
        ("x-tokenization-time", "Milliseconds of tokenising."),
        ("x-inference-time", "Milliseconds from then until the last score came; 0 where nothing was computed."),
    )
}


@cache
def document() -> dict[str, Any]:
    """Build the document served at /docs.json."""
    request = ObjectRequest.model_json_schema(by_alias=False)
    request["examples"] = [_EXAMPLE]
    schemas = {
        "RerankRequest": request,
        "TextsRequest": TextsRequest.model_json_schema(),
        "ScoreRequest": ScoreRequest.model_json_schema(by_alias=False),
        "RerankAnswer": ANSWER,
        "TextsAnswer": _TEXTS_ANSWER,
        "ScoreAnswer": _SCORE_ANSWER,
        "Models": _MODELS,
        "Error": _ERROR,
        "TextsError": _TEXTS_ERROR,
    }
    both = (("RerankRequest", "RerankAnswer", NATIVE), ("TextsRequest", "TextsAnswer", TEI))
    objects, score = both[:1], (("ScoreRequest", "ScoreAnswer", NATIVE),)
    models = _get("The model that is served, as OpenAI's clients ask for it", "application/json", "Models")
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
                    "Rerank: the service's own format (also Infinity, vLLM, llama.cpp), or TEI's where there are `texts`", both
                )
            },
            "/v1/rerank": {"post": _post("Rerank: Jina, Cohere v1, Voyage, Xinference", objects)},
            "/v2/rerank": {"post": _post("Rerank: Cohere v2", objects)},
            "/score": {"post": _post("Score pairs without ranking: vLLM", score)},
            "/v1/score": {"post": _post("Score pairs without ranking: vLLM", score)},
            "/models": {"get": models},
            "/v1/models": {"get": models},
            "/info": {"get": _get("The model and the limits, as TEI names them", "application/json")},
            "/health": {"get": _get("State of the service, for people and gateways", "application/json", also_503=True)},
            "/livez": {"get": _get("200 unless a worker process is gone for long", "text/plain", also_503=True)},
            "/readyz": {"get": _get("200 while a model worker answers", "text/plain", also_503=True)},
            "/metrics": {"get": _get("Prometheus metrics of all worker processes", "text/plain")},
            "/docs.json": {"get": _get("This document", "application/json")},
            "/": {"get": _get("A page to try the service on", "text/html")},
        },
        "components": {"schemas": schemas},
    }


def _refs(names: Sequence[str]) -> dict[str, Any]:
    refs = [{"$ref": f"#/components/schemas/{name}"} for name in names]
    return refs[0] if len(refs) == 1 else {"anyOf": refs}


def _post(summary: str, formats: Sequence[tuple[str, str, Dialect]]) -> dict[str, Any]:
    """Describe a route: of each format it takes the request's schema, the answer's, and who words the errors."""
    requests, answers, dialects = zip(*formats, strict=True)
    return {
        "summary": summary,
        "parameters": [_CACHE_CONTROL],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _refs(requests), **({"example": _EXAMPLE} if NATIVE in dialects else {})}},
        },
        "responses": {
            "200": {
                "description": "The answer",
                "headers": _HEADERS,
                "content": {"application/json": {"schema": _refs(answers)}},
            }
        }
        | _failures(dialects),
    }


def _failures(dialects: Sequence[Dialect]) -> dict[str, Any]:
    codes: dict[str, set[str]] = {}
    bodies: dict[str, list[str]] = {}
    for error in _tree(RequestError):
        # Of the statuses that a dialect has of its own, the one for an empty list stands beside the others.
        for example in [error(""), *([error("", code="documents_empty")] if error is InvalidRequest else [])]:
            for dialect in dialects:
                status, body = dialect.error(example)
                codes.setdefault(str(status), set()).add(example.code)
                name = "Error" if "message" in body else "TextsError"
                if name not in bodies.setdefault(str(status), []):
                    bodies[str(status)].append(name)
    return {
        status: {
            "description": ", ".join(sorted(codes[status])),
            **({"headers": _RETRY_AFTER} if status in _RETRIED else {}),
            "content": {"application/json": {"schema": _refs(bodies[status])}},
        }
        for status in sorted(codes)
    }


def _get(summary: str, media_type: str, schema: str | None = None, *, also_503: bool = False) -> dict[str, Any]:
    content = {media_type: {"schema": _refs([schema])} if schema else {}}
    answer = {"description": summary, "content": content}
    return {"summary": summary, "responses": {"200": answer} | ({"503": answer} if also_503 else {})}


def _tree(root: type[RequestError]) -> list[type[RequestError]]:
    return [root, *(leaf for branch in root.__subclasses__() for leaf in _tree(branch))]
