"""Whatever bytes come as a body: they are read, or refused in the words of the dialect, and nothing else happens."""

from __future__ import annotations

import collections
import json
import os
import time
from collections.abc import Sequence
from typing import Any

from body_mutator import BODIES, MARKER, mutated

from bento_service.body import parse_json
from bento_service.dialects.dialect import Dialect, Limits, to_bytes
from bento_service.dialects.objects import COHERE_V2, NATIVE, V1
from bento_service.dialects.score import SCORE
from bento_service.dialects.texts import TEI
from bento_service.errors import InvalidRequest
from bento_service.ranking import Ranked
from bento_service.routes import Choice, native_or_tei
from bento_service.schemas import CacheCounts, RerankQuery, RerankResult

SEED = int(os.environ.get("FUZZ_SEED", "4"))
CASES = int(os.environ.get("FUZZ_BODIES", "5000"))
LIMITS = Limits(documents=20, document_characters=500, chunks=8)
ROUTES: dict[str, Choice] = {
    "/rerank": native_or_tei,
    "/v1/rerank": lambda _: V1,
    "/v2/rerank": lambda _: COHERE_V2,
    "/score": lambda _: SCORE,
}
_DOCUMENTS = dict.fromkeys(("native", "v1", "cohere_v2"), ("documents",)) | {"tei": ("texts",), "score": ("documents", "text_2")}
# A mutation may have cut the marker, so pieces of it count as well.
PIECES = [MARKER[start : start + 4].encode() for start in range(len(MARKER) - 3)]


def _refused(error: InvalidRequest, dialect: Dialect) -> str:
    """Check a refusal as its caller sees it; its code."""
    status, body = dialect.error(error)
    said = to_bytes(body)
    assert status in ((400, 422) if dialect is TEI else (400,))
    assert not [piece for piece in PIECES if piece in said]
    assert b"\\n" not in said
    assert len(said) < 2000
    return error.code


def _holds(query: RerankQuery) -> None:
    """Check what the rest of the service relies on."""
    assert query.query.strip()
    assert 1 <= len(query.documents) <= LIMITS.documents
    texts = [query.query, *(document.text for document in query.documents), query.model or "", query.instruction or ""]
    assert all(text.encode() or not text for text in texts)
    assert all(len(text) <= LIMITS.document_characters for text in texts[:-2])
    assert query.top_n is None or (type(query.top_n) is int and query.top_n >= 0)
    assert query.max_tokens_per_doc is None or query.max_tokens_per_doc >= 1
    assert query.score_threshold is None or abs(query.score_threshold) < float("inf")
    assert query.max_chunks is None or 1 <= query.max_chunks <= LIMITS.chunks
    assert query.truncation_side in {"left", "right"}
    assert all(type(flag) is bool for flag in (query.raw_scores, query.truncation, query.return_documents))


def _made_up(query: RerankQuery) -> RerankResult:
    ranked = [Ranked(index, 0.5, index + 1) for index in range(len(query.documents))]
    spans = {0: (0, 1)} if query.max_chunks else {}
    return RerankResult(query.model or "m", ranked, 3, [0], CacheCounts(0, len(ranked), 0), ["w"], spans)


def _given(fields: dict[str, Any], *names: str) -> int:
    """Count what stands under the first of these names that is there: a bare text is one."""
    value = fields[next(name for name in names if name in fields)]
    return len(value) if isinstance(value, list) else 1


def _answered(dialect: Dialect, queries: Sequence[RerankQuery], fields: dict[str, Any]) -> None:
    """Check that what was read can be written, and that no document has been lost."""
    for query in queries:
        _holds(query)
    answer: Any = json.loads(to_bytes(dialect.write(queries, [_made_up(query) for query in queries], took_ms=1.0)))
    items = answer if dialect is TEI else answer["data"] if dialect is SCORE else answer["results"]
    assert [item["index"] for item in items] == list(range(_given(fields, *_DOCUMENTS[dialect.name])))
    if dialect is SCORE:
        assert _given(fields, "queries", "text_1") in {1, len(items)}


def _outcomes(body: bytes) -> dict[str, str]:
    """Send a body through the parsers of all routes; what became of it on each."""
    try:
        fields = parse_json(body)
    except InvalidRequest as error:
        return dict.fromkeys(ROUTES, _refused(error, NATIVE))
    outcomes = {}
    for route, choose in ROUTES.items():
        dialect = choose(fields)
        try:
            queries = dialect.read(fields, LIMITS)
        except InvalidRequest as error:
            outcomes[route] = _refused(error, dialect)
        else:
            _answered(dialect, queries, fields)
            outcomes[route] = "read"
    return outcomes


def test_the_bodies_are_valid_before_they_are_mutated() -> None:
    """On a route each; else nothing behind the first check would ever be reached."""
    for body in BODIES:
        assert "read" in _outcomes(json.dumps(body).encode()).values()


def test_a_case_can_be_repeated() -> None:
    """By its seed and number."""
    assert mutated(SEED, 17) == mutated(SEED, 17) != mutated(SEED + 1, 17)


def test_no_body_gets_more_than_an_answer_or_a_refusal() -> None:
    """No exception but the declared ones, no word of the caller's in a message, and what is read can be answered."""
    counts: dict[str, collections.Counter[str]] = {route: collections.Counter() for route in ROUTES}
    begin = time.perf_counter()
    for number in range(CASES):
        body = mutated(SEED, number)
        try:
            outcomes = _outcomes(body)
        except Exception as error:
            raise AssertionError(f"case {number} of seed {SEED}: {body[:2000]!r}") from error
        for route, outcome in outcomes.items():
            counts[route][outcome] += 1
    seconds = round(time.perf_counter() - begin, 1)
    print("\n" + json.dumps({"bodies": CASES, "seed": SEED, "seconds": seconds, "outcomes": counts}))
    for route, outcome in counts.items():
        assert outcome["read"] > CASES / 50, f"too few bodies of {route} are read for what lies behind to be tested"
        assert outcome["invalid_request"] > CASES / 50
