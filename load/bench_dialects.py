"""What the dialects cost: reading a request of 50 documents and writing its answer, for each of them: `make bench-dialects`.

JSON itself is listed apart, since every service pays for it. Dialects take turns within a round, so that a busy moment of the
machine meets them all; the figure that counts is the median of the rounds' medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "load")]

from bento_service.body import parse_json  # noqa: E402  the path must be set first
from bento_service.dialects.dialect import Dialect, Limits, to_bytes  # noqa: E402
from bento_service.dialects.objects import COHERE_V2, NATIVE, V1  # noqa: E402
from bento_service.dialects.score import SCORE  # noqa: E402
from bento_service.dialects.texts import TEI  # noqa: E402
from bento_service.ranking import Ranked  # noqa: E402
from bento_service.schemas import CacheCounts, RerankQuery, RerankResult  # noqa: E402

DOCUMENTS, CHARACTERS = 50, 540
AT_MOST_MS = 0.2
LIMITS = Limits(documents=1000, document_characters=1_000_000, chunks=32)  # the defaults
TEXTS = [(f"Document {number} of a search result. " * 20)[:CHARACTERS] for number in range(DOCUMENTS)]
QUERY = "which document answers the question?"
OBJECTS = [{"text": text, "id": f"id-{number}", "title": "ignored"} for number, text in enumerate(TEXTS)]
REQUESTS: dict[str, tuple[Dialect, dict[str, Any]]] = {
    "native, /rerank": (NATIVE, {"query": QUERY, "documents": TEXTS, "top_n": None}),
    "native, objects with ids": (NATIVE, {"query": QUERY, "documents": OBJECTS, "return_documents": True}),
    "TEI, /rerank": (TEI, {"query": QUERY, "texts": TEXTS, "raw_scores": False, "return_text": True, "truncate": True}),
    "v1, /v1/rerank": (
        V1,
        {"query": QUERY, "documents": OBJECTS, "model": "m", "return_documents": True, "rank_fields": ["text"]},
    ),
    "Cohere v2, /v2/rerank": (COHERE_V2, {"query": QUERY, "documents": TEXTS, "model": "m", "top_n": 10}),
    "score, 1 to N": (SCORE, {"queries": QUERY, "documents": TEXTS}),
    "score, N to N": (SCORE, {"queries": [f"{QUERY} {number}" for number in range(DOCUMENTS)], "documents": TEXTS}),
}


def result_of(query: RerankQuery) -> RerankResult:
    """Make up a result, sorted as the service sorts."""
    count = len(query.documents)
    ranked = [Ranked((7 * rank) % count if count == DOCUMENTS else rank, 1 / (rank + 2), rank + 1) for rank in range(count)]
    return RerankResult("m", ranked[: query.top_n or None], 107 * count, [3], CacheCounts(0, count, 0))


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Time it: the median of so many calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def measured(dialect: Dialect, fields: dict[str, Any], repeats: int) -> dict[str, float]:
    """Time each step of one dialect; ms."""
    body = json.dumps(fields).encode()
    parsed = parse_json(body)
    queries = dialect.read(parsed, LIMITS)
    results = [result_of(query) for query in queries]
    answer = dialect.write(queries, results, took_ms=1.0)
    return {
        "parse_json": milliseconds(lambda: parse_json(body), repeats),
        "read": milliseconds(lambda: dialect.read(parsed, LIMITS), repeats),
        "write": milliseconds(lambda: dialect.write(queries, results, took_ms=1.0), repeats),
        "to_bytes": milliseconds(lambda: to_bytes(answer), repeats),
    }


def main() -> None:
    """Print one line a round, then a table; ends with 1 where a dialect costs too much."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=200, help="calls of each step in a round")
    arguments = parser.parse_args()
    commit = subprocess.run(
        ["/usr/bin/env", "git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    ).stdout.strip()
    print(json.dumps({"commit": commit, "cpus": os.cpu_count(), "python": platform.python_version(), "documents": DOCUMENTS}))
    rounds = []
    for number in range(arguments.rounds):
        figures = {name: measured(*request, arguments.repeats) for name, request in REQUESTS.items()}
        rounds.append(figures)
        rounded = {name: {step: round(ms, 4) for step, ms in steps.items()} for name, steps in figures.items()}
        print(json.dumps({"round": number, "ms": rounded}))
    print("\n| ms | read | write | read + write | parse_json | to_bytes |\n|---|---|---|---|---|---|")
    too_much = []
    for name in REQUESTS:
        ms = {step: statistics.median(figures[name][step] for figures in rounds) for step in rounds[0][name]}
        both = statistics.median(figures[name]["read"] + figures[name]["write"] for figures in rounds)
        print(
            f"| {name} | {ms['read']:.3f} | {ms['write']:.3f} | **{both:.3f}** | {ms['parse_json']:.3f} | {ms['to_bytes']:.3f} |"
        )
        if both >= AT_MOST_MS:
            too_much.append(name)
    print(f"\nread + write must cost less than {AT_MOST_MS} ms: " + (f"not so for {', '.join(too_much)}" if too_much else "met"))
    sys.exit(bool(too_much))


if __name__ == "__main__":
    main()
