"""What every dialect does: read fields into queries, write results, word an error."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bento_service.errors import RequestError
from bento_service.schemas import RerankQuery, RerankResult


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for at most, in any dialect.

    documents: pairs of a query and a document · document_characters: of one text, the query included ·
    chunks: windows of one document that are scored where long documents are cut into several.
    """

    documents: int
    document_characters: int
    chunks: int


class Dialect(Protocol):
    """A client's format."""

    @property
    def name(self) -> str:
        """What people call it."""

    def read(self, fields: dict[str, Any], limits: Limits) -> list[RerankQuery]:
        """Translate a request in: one query, or several where the format knows pairs. Raises InvalidRequest."""

    def write(self, queries: Sequence[RerankQuery], results: Sequence[RerankResult], *, took_ms: float) -> Any:
        """Translate the results out, one for each query, in order; what it returns can be written as JSON."""

    def error(self, error: RequestError) -> tuple[int, dict[str, Any]]:
        """Word an error: the status, and the body that the format's clients read."""


def to_bytes(value: Any) -> bytes:
    """Render JSON as UTF-8; raises ValueError on NaN rather than sending it."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
