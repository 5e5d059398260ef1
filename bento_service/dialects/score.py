"""vLLM's score format: pairs of texts, scored and not ranked."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, WithJsonSchema, field_validator

from bento_service.dialects.dialect import Limits
from bento_service.dialects.fields import (
    Flag,
    Text,
    documents,
    not_blank,
    require_documents,
    require_lengths,
    require_query_length,
    validated,
)
from bento_service.dialects.objects import NATIVE
from bento_service.dialects.request_shapes import DOCUMENT, QUERY, one_or_many
from bento_service.errors import InvalidRequest, RequestError
from bento_service.schemas import Document, RerankQuery, RerankResult

_NAMES = (("queries", "text_1"), ("documents", "text_2"))


class ScoreRequest(BaseModel):
    """Fields of /score; any other field is ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    queries: Annotated[list[Text], WithJsonSchema(one_or_many(QUERY))] = Field(
        validation_alias=AliasChoices(*_NAMES[0]),
        description="One text, or as many as there are documents. Also read as `text_1`.",
    )
    documents: Annotated[list[Any], WithJsonSchema(one_or_many(DOCUMENT))] = Field(
        validation_alias=AliasChoices(*_NAMES[1]),
        description="One text or a list of them; objects are read as on /rerank. Also read as `text_2`.",
    )
    use_activation: Flag | None = Field(None, description="Default true. False: logits, or cosines (bi-encoder).")
    model: Text | None = Field(None, description="Any name; it is echoed (RERANKER_STRICT_MODEL=true refuses other names).")
    instruction: Text | None = Field(None, description="For models whose template has one; others ignore it.")

    @field_validator("queries", mode="before")
    @classmethod
    def _one_query(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("queries")
    @classmethod
    def _not_blank(cls, value: list[str]) -> list[str]:
        return [not_blank(query) for query in value]

    @field_validator("documents", mode="before")
    @classmethod
    def _read_documents(cls, value: Any) -> list[Document]:
        return documents([value] if isinstance(value, str | dict) else value)


class ScoreDialect:
    """vLLM's /score."""

    name = "score"

    def read(self, fields: dict[str, Any], limits: Limits) -> list[RerankQuery]:
        """See Dialect: one query for each text among `queries`, each document's id is its place in the answer."""
        names = [next((name for name in each if fields.get(name) is not None), each[0]) for each in _NAMES]
        for name in names:
            require_documents(fields.get(name), name, limits)
        request = validated(ScoreRequest, fields)
        count = len(request.documents)
        if len(request.queries) not in (1, count):
            raise InvalidRequest(
                f"{len(request.queries)} queries and {count} documents make no pairs: give one query, or one for each document",
                param=names[0],
            )
        for query in request.queries:
            require_query_length(query, names[0], limits)
        require_query_length(request.instruction or "", "instruction", limits)
        require_lengths([document.text for document in request.documents], names[1], limits)
        pairs: dict[str, list[Document]] = {}
        for place, document in enumerate(request.documents):
            query = request.queries[place if len(request.queries) > 1 else 0]
            pairs.setdefault(query, []).append(Document(document.text, place))
        return [
            RerankQuery(
                query=query,
                documents=of_query,
                model=request.model,
                raw_scores=request.use_activation is False,
                instruction=request.instruction,
            )
            for query, of_query in pairs.items()
        ]

    def write(self, queries: Sequence[RerankQuery], results: Sequence[RerankResult], *, took_ms: float) -> dict[str, Any]:  # noqa: ARG002
        """See Dialect: in the order of the documents."""
        scores: dict[int, float] = {}
        for query, result in zip(queries, results, strict=True):
            scores |= {query.documents[ranked.index].id: ranked.score for ranked in result.ranked}
        token_count = sum(result.token_count for result in results)
        return {
            "id": f"score-{uuid.uuid4()}",
            "object": "list",
            "created": int(time.time()),
            "model": results[0].model,
            "data": [{"index": place, "object": "score", "score": scores[place]} for place in range(len(scores))],
            "usage": {"prompt_tokens": token_count, "total_tokens": token_count},
        }

    def error(self, error: RequestError) -> tuple[int, dict[str, Any]]:
        """See Dialect."""
        return NATIVE.error(error)


SCORE = ScoreDialect()
