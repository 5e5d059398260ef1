"""What a request means inside the service, whatever dialect it came in, and what is known when it is answered."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

from bento_service.ranking import Ranked


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
    """A query and its documents.

    truncation: false refuses a document that does not fit · truncation_side: which end of it is cut · max_chunks: score so many
    overlapping windows of a long document, at most, instead of cutting it.
    """

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
    truncation_side: Literal["right", "left"] = "right"
    max_chunks: int | None = None


@dataclass(frozen=True, slots=True)
class CacheCounts:
    """Documents by where their scores came from; together all documents of the request.

    hits: from a cache · shared: from a computation that another request had begun · misses: computed for this request.
    """

    hits: int
    misses: int
    shared: int


@dataclass(slots=True)
class Timing:
    """Where a request's time went, in seconds: what it waited for others is in none of them.

    queue: until the first Scorer batch with pairs of it begins · inference: from then until the last one's end.
    """

    tokenization: float = 0.0
    queue: float = 0.0
    inference: float = 0.0


@dataclass(frozen=True, slots=True)
class RerankResult:
    """The answer to one RerankQuery, in no dialect yet.

    token_count: over all documents, duplicates included · truncated: indexes of the documents that lost text · spans: by index, where
    the best window of a document begins and ends, in characters; only where long documents were scored in windows.
    """

    model: str
    ranked: list[Ranked]
    token_count: int
    truncated: list[int]
    cache: CacheCounts
    warnings: list[str] = field(default_factory=list)
    spans: dict[int, tuple[int, int]] = field(default_factory=dict)
    timing: Timing = field(default_factory=Timing)
