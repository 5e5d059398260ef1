"""What makes two pairs the same: everything that decides on a pair's score, hashed field by field.

A length before each field keeps neighbours apart: ("ab", "c") and ("a", "bc") are different pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bento_service.schemas import RerankQuery

# Written into every key: raise it when the meaning of a key or a value changes, and old entries are never read again.
KEY_VERSION = 2
# 128 bits of SHA-256: two of 10^12 pairs collide with a chance of 10^-15.
DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class PairKeys:
    """Keys of one request's pairs.

    fingerprint: of the model, 64 hex digits · query: digest of all but the document · pairs: digest of each pair, in the
    order of the documents; unlike any other query's · under: makes the keys of the same pairs for
    another fingerprint · windows: whether documents are read in windows.
    """

    fingerprint: str
    query: bytes
    pairs: tuple[bytes, ...]
    under: Callable[[str], PairKeys] = field(repr=False, compare=False)
    windows: bool = False


def pair_keys(query: RerankQuery, documents: Sequence[str], *, fingerprint: str, max_length: int) -> PairKeys:
    """Name the pairs of a query with each of the documents.

    max_length: the model's window in tokens; a max_tokens_per_doc of that size cuts nothing, and so makes no other pair.
    """
    limit = query.max_tokens_per_doc
    shared = hashlib.sha256()
    for part in (
        str(KEY_VERSION),
        fingerprint,
        query.instruction,
        query.truncation_side,
        None if limit is None or limit >= max_length else str(limit),
        None if query.max_chunks is None else str(query.max_chunks),
        query.query,
    ):
        _add(shared, part)
    pairs = []
    for document in documents:
        pair = shared.copy()
        _add(pair, document)
        pairs.append(pair.digest()[:DIGEST_BYTES])
    return PairKeys(
        fingerprint,
        shared.digest()[:DIGEST_BYTES],
        tuple(pairs),
        under=lambda other: pair_keys(query, documents, fingerprint=other, max_length=max_length),
        windows=query.max_chunks is not None,
    )


def _add(digest: hashlib._Hash, part: str | None) -> None:
    if part is None:
        digest.update(b"-")
        return
    data = part.encode()
    digest.update(b"%d:" % len(data))
    digest.update(data)
