"""What BentoML's clients are told of the rerank API's fields, and the request handed over unread."""

from __future__ import annotations

from typing import Any

import bentoml
from pydantic import ConfigDict, Field, create_model
from starlette.requests import Request

from bento_service.answer_shapes import ANSWER
from bento_service.dialects.objects import ObjectRequest


class _RawInput(bentoml.IODescriptor):
    """Documents the fields for BentoML's clients, but hands the request over unread.

    BentoML's own parsing would answer with bodies of its own and log the caller's text.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> Any:  # noqa: ARG003  BentoML's signature
        """Carry the request itself in `query`; Reranker.rerank reads it."""
        return cls.model_construct(**{**dict.fromkeys(cls.model_fields), "query": request})


_ANNOTATIONS = {"query": str, "documents": list[str | dict[str, Any]]}
RerankInput: Any = create_model(  # type: ignore[call-overload]
    "RerankInput",
    __base__=_RawInput,
    **{
        name: (
            _ANNOTATIONS.get(name, field.annotation),
            Field(... if field.is_required() else field.default, description=field.description),
        )
        for name, field in ObjectRequest.model_fields.items()
    },
)
RerankOutput: Any = create_model(  # type: ignore[call-overload]
    "RerankOutput",
    __base__=bentoml.IODescriptor,
    **{name: (Any, Field(None, description=schema.get("description"))) for name, schema in ANSWER["properties"].items()},
)
