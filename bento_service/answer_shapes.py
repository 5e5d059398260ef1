"""What the service answers, as JSON Schema: the shapes that /docs.json names."""

from __future__ import annotations

from typing import Any

_ANSWER_EXAMPLE = {
    "id": "rerank-3f0c6d0e-7f0b-4d0e-9d62-0b8f4f3e6d5a",
    "object": "rerank",
    "created": 1795295619,
    "model": "all-minilm-l6-v2:03340d20e188f749",
    "results": [
        {
            "index": 0,
            "relevance_score": 0.87,
            "score": 0.87,
            "rank": 1,
            "document": {"text": "A reranker sorts documents by how well they answer a query."},
        }
    ],
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
TEXTS_ANSWER = _field(
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
SCORE_ANSWER = _record(
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
MODELS = _record(
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
ERROR = _record(
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
TEXTS_ERROR = _record(
    "Every error of a request with `texts` alone, as TEI words it.",
    {"error": _field("string", "What is wrong and what to do."), "error_type": _field("string", "The kind of error.")},
)


def _or_null(kind: str, meaning: str) -> dict[str, Any]:
    return {"type": [kind, "null"], "description": meaning}


HEALTH = _record(
    "State of the service, summed over all worker processes.",
    {
        "status": _field("string", "`degraded`: some model workers are down; `down`: all are.", enum=["ok", "degraded", "down"]),
        "model": _record(
            "The model, as it runs.",
            {
                "tag": _field("string", "Its tag in the model store."),
                "backend": _field("string", "What runs it."),
                "device": _or_null("string", "Where it runs; null while no model worker answers."),
                "quantization": _or_null("string", "The precision in effect; null while no model worker answers."),
                "quantization_asked": _field("string", "The precision asked for."),
                "precision_reason": _or_null("string", "Why the one became the other."),
                "dtype": _or_null("string", "The type it computes in."),
                "kind": _field("string", "`cross-encoder`, `bi-encoder` or `yes-no`."),
                "activation": _field("string", "What turns a raw score into a score."),
                "source": _field("string", "Where it came from."),
                "revision": _field("string", "Which revision of it."),
                "max_length": _field("integer", "Its window in use, tokens."),
                "fingerprint": _or_null("string", "Names everything that decides on a score."),
                "scorers": _record(
                    "Model workers.",
                    {"up": _field("integer", "Those that answer."), "total": _field("integer", "All.")},
                ),
                "local_cache_size": _field("integer", "Pairs in the memory of the entry workers."),
            },
        ),
        "distributed_cache": _record(
            "Redis.",
            {
                "enabled": _field("boolean", "Whether REDIS_ENABLED is true."),
                "connected": _field("boolean", "Whether it answers."),
                "state": _field("string", "In a word."),
                "cached_entries": _field("integer", "Keys of the whole Redis."),
                "keyspace_hits": _field("integer", "Look-ups of the whole Redis that found something."),
                "keyspace_misses": _field("integer", "Those that did not."),
            },
        ),
        "micro_batcher": _record(
            "Scorer batches.",
            {
                "enabled": _field("boolean", "Whether pairs of different requests share a forward pass."),
                "total_requests": _field("integer", "Calls to model workers."),
                "total_batches": _field("integer", "Scorer batches."),
                "avg_batch_size": _field("number", "Pairs in one."),
            },
        ),
        "requests": _record(
            "Requests to rerank and to score.",
            {
                "total": _field("integer", "All that were answered."),
                "success_rate": _or_null("number", "The share that was not answered with 424, 429, 500, 503 or 504."),
                "average_wait_seconds": _or_null("number", "Seconds in the queue."),
                "average_processing_seconds": _or_null("number", "Seconds in all."),
                "waiting": _field("integer", "Now in the queue."),
                "active": _field("integer", "Now under way."),
            },
        ),
        "limits": {"type": "object", "description": "What a request may ask for, as set."},
        "versions": {
            "type": "object",
            "description": "Of what decides on scores and behaviour.",
            "additionalProperties": {"type": "string"},
        },
    },
)
INFO = _record(
    "The model and the limits in TEI's words, then in ours.",
    {
        "model_id": _field("string", "Where the model came from."),
        "model_sha": _field("string", "Which revision of it."),
        "model_dtype": _field("string", "The type it computes in."),
        "model_type": {"type": "object", "description": "That it is a reranker."},
        "max_input_length": _field("integer", "Its window in use, tokens."),
        "max_batch_tokens": _or_null("integer", "Tokens of the forward passes that a model worker runs at once, if set."),
        "max_client_batch_size": _field("integer", "Documents in one request."),
        "auto_truncate": _field("boolean", "Always true."),
        "tokenization_workers": _field("integer", "Tokenising threads of one entry worker."),
        "version": _field("string", "The service's version."),
        "tag": _field("string", "The model's tag in the model store."),
        "kind": _field("string", "`cross-encoder`, `bi-encoder` or `yes-no`."),
        "activation": _field("string", "What turns a raw score into a score."),
        "quantization": _or_null("string", "The precision in effect."),
        "device": _or_null("string", "Where it runs."),
        "fingerprint": _or_null("string", "Names everything that decides on a score."),
    },
)
