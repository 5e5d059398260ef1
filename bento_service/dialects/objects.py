"""The object dialects: the service's own, and those of Cohere, Jina, Voyage, Infinity, vLLM and Xinference.

They differ in little: one reading of the fields, and one answer that all of their clients can read.
"""

from __future__ import annotations

import math
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationInfo, WithJsonSchema, field_validator

from bento_service.dialects.dialect import Limits
from bento_service.dialects.fields import (
    Flag,
    Text,
    Whole,
    documents,
    not_blank,
    require_documents,
    require_lengths,
    require_query_length,
    validated,
)
from bento_service.dialects.request_shapes import DOCUMENT, QUERY, TEXT_KEYS_TOLD, many
from bento_service.errors import RequestError
from bento_service.schemas import Document, RerankQuery, RerankResult

_DOCUMENTS_PER_SEARCH_UNIT = 100  # as Cohere counts


class ObjectRequest(BaseModel):
    """Fields of the object dialects; any other field is ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    query: Annotated[Text, WithJsonSchema(QUERY)] = Field(
        description="What the documents are ranked for; not blank, never truncated."
    )
    # Before documents, which are read by them.
    rank_fields: list[Text] | None = Field(
        None,
        max_length=100,
        description="For documents that are objects: the fields whose texts are joined by newlines, in this order, and ranked.",
    )
    documents: list[Any] = Field(
        description=f"Strings, or objects that hold a text under one of {TEXT_KEYS_TOLD}; an object's `id` comes back in the result.",
        json_schema_extra=many(DOCUMENT),
    )
    top_n: Whole | None = Field(
        None,
        ge=0,
        validation_alias=AliasChoices("top_n", "top_k", "rank_count"),
        description="Results to return; null, 0 or more than there are documents: all. Also read as `top_k` and `rank_count`.",
    )
    return_documents: Flag | None = Field(
        None,
        description="Send the documents back with the results. Default: true on /rerank, false on /v1/rerank and /v2/rerank.",
    )
    model: Text | None = Field(None, description="Any name; it is echoed (RERANKER_STRICT_MODEL=true refuses other names).")
    max_tokens_per_doc: Whole | None = Field(
        None,
        ge=1,
        description="Tokens of a document that are read (with `chunk`: in each window); more than the window has room for means the window.",
    )
    raw_scores: Flag | None = Field(None, description="Logits, or cosines (bi-encoder), instead of scores.")
    truncation: Flag | None = Field(
        None,
        validation_alias=AliasChoices("truncation", "truncate"),
        description="Default true. False: a document that does not fit is an error that names its index. Also read as `truncate`.",
    )
    long_documents: Literal["truncate", "chunk"] | None = Field(
        None,
        description="What happens to documents beyond the window: `truncate` (default), or `chunk`: they are scored in overlapping "
        "windows, the best of which counts and is named in `document_span`.",
    )
    max_chunks_per_doc: Annotated[Whole | None, Field(ge=1), WithJsonSchema({})] = Field(
        None,
        description="With `chunk`: windows of a document that are scored, from its beginning, an integer of at least 1. Default and most: "
        "RERANKER_MAX_CHUNKS. Without `chunk` it is ignored, whatever it is.",
    )
    score_threshold: float | None = Field(
        None,
        strict=True,
        allow_inf_nan=False,
        description="Results below it are dropped; on the scale of the scores returned.",
        json_schema_extra={"minimum": -sys.float_info.max, "maximum": sys.float_info.max},
    )
    instruction: Text | None = Field(
        None, description="For models whose template has one; otherwise `meta.warnings` says that it was ignored."
    )

    @field_validator("query")
    @classmethod
    def _not_blank(cls, value: str) -> str:
        return not_blank(value)

    @field_validator("max_chunks_per_doc", mode="before")
    @classmethod
    def _only_with_chunk(cls, value: Any, info: ValidationInfo) -> Any:
        return value if info.data.get("long_documents") == "chunk" else None

    @field_validator("documents", mode="before")
    @classmethod
    def _read_documents(cls, value: Any, info: ValidationInfo) -> list[Document]:
        return documents(value, info.data.get("rank_fields") or ())


@dataclass(frozen=True, slots=True)
class ObjectDialect:
    """One of them.

    api_version: Cohere's number in meta · return_documents: the default · short_fields: `score` and `rank` beside `relevance_score` ·
    data: `data` beside `results`, for Voyage's clients.
    """

    name: str
    api_version: str
    return_documents: bool = False
    short_fields: bool = False
    data: bool = False

    def read(self, fields: dict[str, Any], limits: Limits) -> list[RerankQuery]:
        """See Dialect."""
        require_documents(fields.get("documents"), "documents", limits)
        request = validated(ObjectRequest, fields)
        require_query_length(request.query, "query", limits)
        require_query_length(request.instruction or "", "instruction", limits)
        require_lengths([document.text for document in request.documents], "documents", limits)
        chunk = request.long_documents == "chunk"
        return [
            RerankQuery(
                query=request.query,
                documents=request.documents,
                model=request.model,
                top_n=request.top_n,
                score_threshold=request.score_threshold,
                max_tokens_per_doc=request.max_tokens_per_doc,
                raw_scores=bool(request.raw_scores),
                truncation=request.truncation is not False,
                return_documents=self.return_documents if request.return_documents is None else request.return_documents,
                instruction=request.instruction,
                max_chunks=min(request.max_chunks_per_doc or limits.chunks, limits.chunks) if chunk else None,
            )
        ]

    def write(self, queries: Sequence[RerankQuery], results: Sequence[RerankResult], *, took_ms: float) -> dict[str, Any]:
        """See Dialect: one union that every client of an object dialect can read."""
        [query], [result] = queries, results
        items = []
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
            if span := result.spans.get(ranked.index):
                item["document_span"] = {"start": span[0], "end": span[1]}
            items.append(item)
        answer = {
            "id": f"rerank-{uuid.uuid4()}",
            "object": "rerank",
            "created": int(time.time()),
            "model": result.model,
            "results": items,
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
        if self.data:
            answer["data"] = [{"index": ranked.index, "relevance_score": ranked.score} for ranked in result.ranked]
        return answer

    def error(self, error: RequestError) -> tuple[int, dict[str, Any]]:
        """See Dialect: a body that the clients of all object dialects can read at once.

        `detail` stays a string: infinity_client parses a 422's as a list, and no object route answers 422.
        """
        return error.status, {
            "message": error.message,
            "detail": error.message,
            "error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code},
        }


NATIVE = ObjectDialect("native", api_version="2", return_documents=True, short_fields=True)
V1 = ObjectDialect("v1", api_version="1", data=True)  # Jina, Cohere v1, Voyage, Xinference
COHERE_V2 = ObjectDialect("cohere_v2", api_version="2")
