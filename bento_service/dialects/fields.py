"""What the dialects' fields have in common: how documents, texts and flags are read, and how a wrong one is told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, Strict, ValidationError, WithJsonSchema

from bento_service.dialects.dialect import Limits
from bento_service.dialects.request_shapes import FLAG, TEXT_KEYS, TEXT_KEYS_TOLD
from bento_service.errors import InvalidRequest
from bento_service.schemas import Document

M = TypeVar("M", bound=BaseModel)


def _lenient_bool(value: Any) -> Any:
    """RAGFlow and Xinference send "true" and "false"."""
    return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value


Text = Annotated[str, Strict()]
Whole = Annotated[int, Strict()]
Flag = Annotated[bool, Strict(), BeforeValidator(_lenient_bool), WithJsonSchema(FLAG)]


def validated(model: type[M], fields: dict[str, Any]) -> M:
    """Check fields against a model; InvalidRequest names the first one at fault, without its value.

    A null is as good as nothing: clients send it for what they leave out, also beside another name of the same field.
    """
    try:
        return model.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        name = str(first["loc"][0])
        place = f"{name}[{first['loc'][1]}]" if isinstance(first["loc"][-1], int) else name
        message = first["msg"].removeprefix("Value error, ")
        raise InvalidRequest(message if name in message else f"{place}: {message}", param=name) from None


def require_documents(documents: Any, name: str, limits: Limits) -> None:
    """Refuse an empty list and one that is too long before anything looks into it."""
    if not isinstance(documents, list):
        return
    if not documents:
        raise InvalidRequest(f"{name} is empty: give at least one", code="documents_empty", param=name)
    if len(documents) > limits.documents:
        raise InvalidRequest(
            f"{len(documents)} {name} are too many: this server takes at most {limits.documents} in one request",
            code="documents_too_many",
            param=name,
        )


def require_query_length(query: str, name: str, limits: Limits) -> None:
    """Refuse a query that is longer than any model reads."""
    most = limits.document_characters
    if len(query) > most:
        raise InvalidRequest(
            f"{name} has {len(query)} characters: this server takes at most {most}", code="query_too_long", param=name
        )


def require_lengths(texts: Sequence[str], name: str, limits: Limits) -> None:
    """Refuse documents that are longer than any model reads."""
    most = limits.document_characters
    for index, text in enumerate(texts):
        if len(text) > most:
            raise InvalidRequest(
                f"document {index} has {len(text)} characters: this server takes at most {most} in one, so send it in parts",
                code="document_too_large",
                param=name,
            )


def not_blank(value: str) -> str:
    """Refuse a query without a word."""
    if not value.strip():
        raise ValueError("query is blank: give the text to rank the documents for")
    return value


def text_of(value: Any) -> str | None:
    """Find the text in a string, or in vLLM's list of content parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in value):
        return "\n".join(part["text"] for part in value)
    return None


def document(index: int, item: Any, rank_fields: Sequence[str] = ()) -> Document:
    """Read a document. rank_fields: whose texts make up that of an object, in this order, where it has any of them.

    Raises ValueError, as pydantic wants it.
    """
    if isinstance(item, str):
        return Document(item)
    if not isinstance(item, dict):
        raise ValueError(f"document {index} is neither a string nor an object")  # noqa: TRY004  pydantic reports only ValueError
    parts = [text for field in rank_fields if (text := text_of(item.get(field))) is not None]
    text = "\n".join(parts) if parts else next((text for key in TEXT_KEYS if (text := text_of(item.get(key))) is not None), None)
    if text is None:
        raise ValueError(f"document {index} has no text: give a string, or an object with one of {TEXT_KEYS_TOLD}")
    if not _is_scalar(item.get("id")):
        raise ValueError(f"document {index} has an id that is neither a string nor a finite number")
    return Document(text, item.get("id"), "id" in item)


def documents(value: Any, rank_fields: Sequence[str] = ()) -> list[Document]:
    """Read a list of documents; raises ValueError."""
    if not isinstance(value, list):
        raise ValueError("documents must be a list of strings or objects")  # noqa: TRY004  pydantic reports only ValueError
    once = tuple(dict.fromkeys(rank_fields))  # a name that repeats would make much text of little
    return [document(index, item, once) for index, item in enumerate(value)]


def _is_scalar(value: Any) -> bool:
    """Tell whether an id can be sent back as it came: 1e999 is read as infinity, and nested ones may be too deep to write."""
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
