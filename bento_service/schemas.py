"""What a request means inside the service, and the reading of the object dialects' fields.

parse_json and ObjectRequest reject; nothing behind them needs to check a field again.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError, field_validator

from bento_service.errors import InvalidRequest
from bento_service.ranking import Ranked

_TEXT_KEYS = ("text", "content", "document", "body", "value", "snippet")
# Any escaped surrogate: only such a body can hold a lone one, so only such a body is searched.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class CacheUse(Enum):
    """What a request may do with the caches: use them · compute anew and store · neither read nor write."""

    FULL = "full"
    REFRESH = "refresh"
    NONE = "none"


def cache_use(cache_control: str) -> CacheUse:
    """Read a Cache-Control header: `no-store` wins over `no-cache`; other directives do not concern a request's scores."""
    directives = {part.strip().lower() for part in cache_control.split(",")}
    return CacheUse.NONE if "no-store" in directives else CacheUse.REFRESH if "no-cache" in directives else CacheUse.FULL


@dataclass(frozen=True, slots=True)
class Document:
    """A document's text and the caller's id for it, if there was one."""

    text: str
    id: Any = None
    has_id: bool = False


@dataclass(frozen=True, slots=True)
class RerankQuery:
    """One rerank request, whatever dialect it came in."""

    query: str
    documents: list[Document]
    model: str | None = None
    top_n: int | None = None
    score_threshold: float | None = None
    max_tokens_per_doc: int | None = None
    raw_scores: bool = False
    truncation: bool = True
    return_documents: bool = False
    instruction: str | None = None
    truncation_side: Literal["right"] = "right"
    long_documents: Literal["truncate"] = "truncate"


@dataclass(frozen=True, slots=True)
class CacheCounts:
    """Documents by where their scores came from; together all documents of the request.

    hits: from a cache · shared: from a computation that another request had begun · misses: computed for this request.
    """

    hits: int
    misses: int
    shared: int


@dataclass(frozen=True, slots=True)
class RerankResult:
    """The answer to one RerankQuery, in no dialect yet.

    token_count: over all documents, duplicates included · truncated: indexes of the documents that lost text.
    """

    model: str
    ranked: list[Ranked]
    token_count: int
    truncated: list[int]
    cache: CacheCounts
    warnings: list[str] = field(default_factory=list)


def parse_json(body: bytes) -> dict[str, Any]:
    """Read a JSON object; lone surrogates become U+FFFD, NaN and Infinity are refused.

    Raises InvalidRequest, whose message never repeats the body.
    """
    try:
        # Decoded here, because json would let surrogates pass that are no UTF-8.
        value = json.loads(body.decode("utf-8-sig"), parse_constant=_refuse_constant)
        if _SURROGATE.search(body):
            value = _mend_surrogates(value)
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply", code="invalid_json") from None
    except UnicodeDecodeError:
        raise InvalidRequest("the body is not UTF-8", code="invalid_json") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error.msg} at character {error.pos}", code="invalid_json") from None
    except ValueError as error:
        # Besides our own refusal, Python refuses to convert integers of more than 4300 digits.
        message = str(error) if isinstance(error, _NotJsonError) else "the body holds a number that is too long"
        raise InvalidRequest(message, code="invalid_json") from None
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object", code="invalid_json")
    return value


class _NotJsonError(ValueError):
    pass


def _refuse_constant(name: str) -> float:
    raise _NotJsonError(f"the body holds {name}, which is not JSON")


def _mend_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_mend_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_mend_surrogates(key): _mend_surrogates(item) for key, item in value.items()}
    return value


def _text_of(value: Any) -> str | None:
    """Find the text in a string, or in vLLM's list of content parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in value):
        return "\n".join(part["text"] for part in value)
    return None


def _is_scalar(value: Any) -> bool:
    """Tell whether an id can be sent back as it came: 1e999 is read as infinity, and nested ones may be too deep to write."""
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _document(index: int, item: Any) -> Document:
    if isinstance(item, str):
        return Document(item)
    if isinstance(item, dict):
        for key in _TEXT_KEYS:
            text = _text_of(item.get(key))
            if text is not None:
                if not _is_scalar(item.get("id")):
                    raise ValueError(f"document {index} has an id that is neither a string nor a finite number")
                return Document(text, item.get("id"), "id" in item)
        raise ValueError(f"document {index} has no text: give a string, or an object with one of {', '.join(_TEXT_KEYS)}")
    raise ValueError(f"document {index} is neither a string nor an object")


def _documents(value: Any) -> list[Document]:
    if not isinstance(value, list):
        raise ValueError("documents must be a list of strings or objects")  # noqa: TRY004  pydantic reports only ValueError
    return [_document(index, item) for index, item in enumerate(value)]


def _lenient_bool(value: Any) -> Any:
    """RAGFlow and Xinference send "true" and "false"."""
    return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value


Whole = Annotated[int, Strict()]
Flag = Annotated[bool, Strict(), BeforeValidator(_lenient_bool)]


class ObjectRequest(BaseModel):
    """Fields of the object dialects; any other field is ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    query: Annotated[str, Strict()] = Field(description="What the documents are ranked for; not blank, never truncated.")
    documents: Annotated[list[Any], BeforeValidator(_documents)] = Field(
        description="Strings, or objects that hold `text` (also `content`, `document`, `body`, `value`, `snippet`); an object's `id` comes back in the result.",
        json_schema_extra={"minItems": 1, "items": {"anyOf": [{"type": "string"}, {"type": "object"}]}},
    )
    top_n: Whole | None = Field(
        None,
        ge=0,
        validation_alias=AliasChoices("top_n", "top_k", "rank_count"),
        description="Results to return; null, 0 or more than there are documents: all. Also read as `top_k` and `rank_count`.",
    )
    return_documents: Flag | None = Field(
        None, description="Send the documents back with the results. Default: true on /rerank, false on /v2/rerank."
    )
    model: Annotated[str, Strict()] | None = Field(
        None, description="Any name; it is echoed (RERANKER_STRICT_MODEL=true refuses other names)."
    )
    max_tokens_per_doc: Whole | None = Field(
        None, ge=1, description="Tokens of a document that are read; more than the model's window has room for means the window."
    )
    raw_scores: Flag | None = Field(None, description="Logits (cross-encoder) or cosines (bi-encoder) instead of scores.")
    truncation: Flag | None = Field(
        None,
        validation_alias=AliasChoices("truncation", "truncate"),
        description="Default true. False: a document that does not fit is an error that names its index. Also read as `truncate`.",
    )
    long_documents: Literal["truncate"] | None = Field(
        None, description="What happens to documents beyond the window: `truncate`."
    )
    score_threshold: float | None = Field(
        None, strict=True, allow_inf_nan=False, description="Results below it are dropped; on the scale of the scores returned."
    )
    instruction: Annotated[str, Strict()] | None = Field(
        None, description="For models whose template has one; otherwise `meta.warnings` says that it was ignored."
    )

    @field_validator("query")
    @classmethod
    def _not_blank(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("query is blank: give the text to rank the documents for")
        return value

    @field_validator("score_threshold")
    @classmethod
    def _finite(cls, value: float | None) -> float | None:
        if value is not None and not math.isfinite(value):
            raise ValueError("score_threshold must be a finite number")
        return value


def read_object_request(fields: dict[str, Any], *, max_documents: int, return_documents: bool) -> RerankQuery:
    """Check the fields of an object-dialect request.

    return_documents: the dialect's default. Raises InvalidRequest that names the field at fault.
    """
    documents = fields.get("documents")
    if isinstance(documents, list):
        if not documents:
            raise InvalidRequest("documents is empty: give at least one", code="documents_empty", param="documents")
        if len(documents) > max_documents:
            raise InvalidRequest(
                f"{len(documents)} documents are too many: this server takes at most {max_documents} in one request",
                code="documents_too_many",
                param="documents",
            )
    try:
        request = ObjectRequest.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        name = str(first["loc"][0])
        message = first["msg"].removeprefix("Value error, ")
        raise InvalidRequest(message if name in message else f"{name}: {message}", param=name) from None
    return RerankQuery(
        query=request.query,
        documents=request.documents,
        model=request.model,
        top_n=request.top_n,
        score_threshold=request.score_threshold,
        max_tokens_per_doc=request.max_tokens_per_doc,
        raw_scores=bool(request.raw_scores),
        truncation=request.truncation is not False,
        return_documents=return_documents if request.return_documents is None else request.return_documents,
        instruction=request.instruction,
    )
