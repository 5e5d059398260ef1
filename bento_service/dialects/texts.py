"""The dialect of Hugging Face's Text Embeddings Inference (TEI): `texts` in, a bare list out, errors of its own kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, field_validator

from bento_service.dialects.dialect import Limits
from bento_service.dialects.fields import (
    Flag,
    Text,
    Whole,
    not_blank,
    require_documents,
    require_lengths,
    require_query_length,
    validated,
)
from bento_service.dialects.request_shapes import QUERY, TEXT, many
from bento_service.errors import InvalidRequest, RequestError
from bento_service.schemas import Document, RerankQuery, RerankResult

_STATUS = {400: 422, 500: 424}
_ERROR_TYPES = {404: "Validation", 422: "Validation", 424: "Backend", 429: "Overloaded", 503: "Unhealthy", 504: "Backend"}


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


class TextsRequest(BaseModel):
    """Fields of TEI's /rerank; any other field is ignored."""

    # With `documents` beside `texts`, a body is in the object dialect.
    model_config = ConfigDict(
        frozen=True, extra="ignore", hide_input_in_errors=True, json_schema_extra={"not": {"required": ["documents"]}}
    )

    query: Annotated[Text, WithJsonSchema(QUERY)] = Field(
        description="What the texts are ranked for; not blank, never truncated."
    )
    texts: list[Text] = Field(description="The documents.", json_schema_extra=many(TEXT))
    raw_scores: Flag | None = Field(None, description="Logits, or cosines (bi-encoder), instead of scores.")
    return_text: Flag | None = Field(None, description="Send the texts back. Default: false.")
    truncate: Flag | None = Field(
        None, description="Default true. False: a text that does not fit is an error that names its index."
    )
    truncation_direction: Annotated[
        Literal["right", "left"] | None,
        BeforeValidator(_lower),
        WithJsonSchema({"enum": ["right", "left", "Right", "Left", None]}),
    ] = Field(None, description="Which end of a long text is cut: `right` (default) or `left`.")
    top_n: Whole | None = Field(None, ge=0, description="Results to return; null, 0 or more than there are texts: all.")
    model: Text | None = Field(None, description="Any name (RERANKER_STRICT_MODEL=true refuses other names).")

    @field_validator("query")
    @classmethod
    def _not_blank(cls, value: str) -> str:
        return not_blank(value)


class TextsDialect:
    """TEI's /rerank."""

    name = "tei"

    def read(self, fields: dict[str, Any], limits: Limits) -> list[RerankQuery]:
        """See Dialect."""
        require_documents(fields.get("texts"), "texts", limits)
        request = validated(TextsRequest, fields)
        require_query_length(request.query, "query", limits)
        require_lengths(request.texts, "texts", limits)
        return [
            RerankQuery(
                query=request.query,
                documents=[Document(text) for text in request.texts],
                model=request.model,
                top_n=request.top_n,
                raw_scores=bool(request.raw_scores),
                truncation=request.truncate is not False,
                truncation_side=request.truncation_direction or "right",
                return_documents=bool(request.return_text),
            )
        ]

    def write(self, queries: Sequence[RerankQuery], results: Sequence[RerankResult], *, took_ms: float) -> list[dict[str, Any]]:  # noqa: ARG002
        """See Dialect."""
        [query], [result] = queries, results
        items: list[dict[str, Any]] = [{"index": ranked.index, "score": ranked.score} for ranked in result.ranked]
        if query.return_documents:
            for item in items:
                item["text"] = query.documents[item["index"]].text
        return items

    def error(self, error: RequestError) -> tuple[int, dict[str, Any]]:
        """See Dialect: TEI says what is wrong with 422, and that the model failed with 424."""
        if isinstance(error, InvalidRequest) and error.code == "documents_empty":
            return error.status, {"error": error.message, "error_type": "Empty"}
        status = _STATUS.get(error.status, error.status)
        return status, {"error": error.message, "error_type": _ERROR_TYPES.get(status, "Validation")}


TEI = TextsDialect()
