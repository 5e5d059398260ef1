"""The formats clients speak: a thin translation in and out of each, and the error bodies.

A further dialect is a further Dialect here and a route in routes.py.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from dataclasses import dataclass
from typing import Any

from bento_service.errors import RequestError
from bento_service.schemas import RerankQuery, RerankResult, read_object_request

_DOCUMENTS_PER_SEARCH_UNIT = 100  # as Cohere counts


@dataclass(frozen=True, slots=True)
class Dialect:
    """An object dialect; they differ in little.

    api_version: Cohere's number in meta · return_documents: the default · short_fields: `score` and `rank` beside `relevance_score`.
    """

    name: str
    api_version: str
    return_documents: bool
    short_fields: bool

    def read(self, fields: dict[str, Any], *, max_documents: int) -> RerankQuery:
        """Translate a request in; raises InvalidRequest."""
        return read_object_request(fields, max_documents=max_documents, return_documents=self.return_documents)

    def write(self, query: RerankQuery, result: RerankResult, *, took_ms: float) -> dict[str, Any]:
        """Translate an answer out: one union that every client of an object dialect can read."""
        results = []
        for ranked in result.ranked:
            document = query.documents[ranked.index]
            item: dict[str, Any] = {"index": ranked.index, "relevance_score": ranked.score}
            if self.short_fields:
                item |= {"score": ranked.score, "rank": ranked.rank}
            if document.has_id:
                item["id"] = document.id
            if query.return_documents:
                # An object or absent: litellm and strict clients fail on null and on a bare string.
                item["document"] = {"text": document.text}
            results.append(item)
        return {
            "id": f"rerank-{uuid.uuid4()}",
            "object": "rerank",
            "created": int(time.time()),
            "model": result.model,
            "results": results,
            "usage": {"prompt_tokens": result.token_count, "total_tokens": result.token_count},
            "meta": {
                "api_version": {"version": self.api_version},
                "billed_units": {"search_units": math.ceil(len(query.documents) / _DOCUMENTS_PER_SEARCH_UNIT)},
                "tokens": {"input_tokens": result.token_count, "output_tokens": 0},
                "cached_documents": result.cache.hits,
                "truncated_documents": result.truncated,
                "warnings": result.warnings,
            },
            "took_ms": round(took_ms, 2),
        }


NATIVE = Dialect("native", api_version="2", return_documents=True, short_fields=True)
COHERE_V2 = Dialect("cohere_v2", api_version="2", return_documents=False, short_fields=False)


def error_body(error: RequestError) -> dict[str, Any]:
    """Build the body that the clients of all object dialects can read at once.

    `detail` stays a string: infinity_client parses a 422's as a list, and no object route answers 422.
    """
    return {
        "message": error.message,
        "detail": error.message,
        "error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code},
    }


def to_bytes(value: Any) -> bytes:
    """Render JSON as UTF-8; raises ValueError on NaN rather than sending it."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
