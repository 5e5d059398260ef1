"""What is asked: a stream of requests, from a seed alone or from files, in which a settable share repeats earlier ones.

A request's documents follow from its query, so a query that comes again brings the same pairs. Popularity: each new query draws a weight
from a Pareto distribution, which gives the frequencies of Zipf's law; a repeat takes one of the last `repeat_within` queries by weight.
"""

from __future__ import annotations

import bisect
import json
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from text_files import read_texts
from texts import Texts

POOL = 5_000  # generated documents; a pair is new whenever its query is
BLOCK = 10  # requests among which the share of repeats is exact


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """How a stream is made. repeats: share of requests · zipf: slope, 0 is uniform · repeat_within: queries back · corpus, queries: files."""

    seed: int = 1
    documents: int = 10
    repeats: float = 0.0
    zipf: float = 1.0
    repeat_within: int = 10_000
    corpus: str | None = None
    queries: str | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A query with its documents. repeated: it came before."""

    query: str
    documents: list[str]
    repeated: bool

    def body(self) -> bytes:
        """Write it as /v2/rerank reads it."""
        return json.dumps({"query": self.query, "documents": self.documents}).encode()


class Popularity:
    """The queries so far, and which of them comes again."""

    def __init__(self, *, slope: float, within: int, draw: random.Random) -> None:
        self._slope, self._draw = slope, draw
        self._queries: deque[str] = deque(maxlen=within)
        self._sums: deque[float] = deque(maxlen=within)
        self._before = self._total = 0.0

    def add(self, query: str) -> None:
        """Take a new query in."""
        if len(self._sums) == self._sums.maxlen:
            self._before = self._sums[0]
        self._total += (1 - self._draw.random()) ** -self._slope
        self._queries.append(query)
        self._sums.append(self._total)

    def again(self) -> str | None:
        """Draw one by its weight; None where there is none yet."""
        if not self._queries:
            return None
        place = bisect.bisect_left(self._sums, self._draw.uniform(self._before, self._total))
        return self._queries[min(place, len(self._queries) - 1)]


class Workload:
    """An endless stream of requests; with a file of queries its order, from the start again at its end.

    Raises TextFileError for a file that cannot be used.
    """

    def __init__(self, spec: WorkloadSpec) -> None:
        self._spec = spec
        self._draw = random.Random(spec.seed)
        self._generated = Texts(spec.seed)
        self._pool = self._read_pool()
        self._queries = read_texts(Path(spec.queries), "query")[: spec.limit] if spec.queries else []
        self._stream = self._replayed() if spec.queries else self._made()

    @property
    def file_queries(self) -> list[str]:
        """The queries of the file, in order; none without one."""
        return self._queries

    def take(self) -> Request:
        """Return the next request."""
        query, repeated = next(self._stream)
        draw = random.Random(f"{self._spec.seed} {query}")
        return Request(query, draw.sample(self._pool, self._spec.documents), repeated)

    def _read_pool(self) -> list[str]:
        if not self._spec.corpus:
            return [self._generated.document() for _ in range(max(POOL, self._spec.documents))]
        pool = list(dict.fromkeys(read_texts(Path(self._spec.corpus), "document")))
        return pool * -(-self._spec.documents // len(pool))

    def _replayed(self) -> Iterator[tuple[str, bool]]:
        seen: set[str] = set()
        while True:
            for query in self._queries:
                yield query, query in seen
                seen.add(query)

    def _made(self) -> Iterator[tuple[str, bool]]:
        known = Popularity(slope=self._spec.zipf, within=self._spec.repeat_within, draw=self._draw)
        owed = 0.0
        while True:
            owed += self._spec.repeats * BLOCK
            repeats = min(int(owed), BLOCK)
            owed -= repeats
            for is_repeat in self._draw.sample([True] * repeats + [False] * (BLOCK - repeats), BLOCK):
                query = known.again() if is_repeat else None
                owed += is_repeat and query is None  # the first request cannot repeat any: another one does instead
                yield (query, True) if query else (self._new(known), False)

    def _new(self, known: Popularity) -> str:
        query = self._generated.query()
        known.add(query)
        return query
