"""nDCG@10 of a running server on judged data: `make evaluate DATA=<folder> URL=http://localhost:3000`.

The folder holds queries.tsv and passages.tsv (id, tab, text), run.trec (candidates) and qrels.txt (grades), as TREC's tracks do.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx

CUTOFF = 10


def texts(path: Path) -> dict[str, str]:
    """Read id, tab, text."""
    return dict(line.split("\t", 1) for line in path.read_text(encoding="utf-8").splitlines())


def ndcg(grades: list[int], ideal: list[int]) -> float:
    """Discounted cumulative gain of the first 10 grades over the best possible, with linear gain (Järvelin and Kekäläinen 2002)."""

    def gain(values: list[int]) -> float:
        return sum(grade / math.log2(place + 2) for place, grade in enumerate(values[:CUTOFF]))

    best = gain(sorted(ideal, reverse=True))
    return gain(grades) / best if best else 0.0


@dataclass(frozen=True, slots=True)
class Judged:
    """Judged data. candidates: passage ids by query id, in the first stage's order · grades: by query id and passage id."""

    name: str
    queries: dict[str, str]
    passages: dict[str, str]
    candidates: dict[str, list[str]]
    grades: dict[str, dict[str, int]]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a folder's four files."""
        candidates: dict[str, list[str]] = defaultdict(list)
        grades: dict[str, dict[str, int]] = defaultdict(dict)
        for line in (folder / "run.trec").read_text().splitlines():
            query, _, passage, *_ = line.split()
            candidates[query].append(passage)
        for line in (folder / "qrels.txt").read_text().splitlines():
            query, _, passage, grade = line.split()
            grades[query][passage] = int(grade)
        return cls(folder.resolve().name, texts(folder / "queries.tsv"), texts(folder / "passages.tsv"), candidates, grades)

    def rank(self, client: httpx.Client, query: str) -> list[tuple[int, float]]:
        """Let a server rank a query's candidates: their places among the candidates and their scores, best first."""
        body = {"query": self.queries[query], "documents": [self.passages[passage] for passage in self.candidates[query]]}
        results = client.post("/v2/rerank", json=body).raise_for_status().json()["results"]
        return [(result["index"], result["relevance_score"]) for result in results]

    def ndcg(self, query: str, order: Iterable[int]) -> float:
        """nDCG@10 of a query's candidates in this order."""
        found, grades = self.candidates[query], self.grades[query]
        return ndcg([grades.get(found[place], 0) for place in order], list(grades.values()))


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://localhost:3000")
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    judged = Judged.read(options.data)
    before, after = [], []
    with httpx.Client(base_url=options.url, timeout=300) as client:
        for query, found in judged.candidates.items():
            before.append(judged.ndcg(query, range(len(found))))
            after.append(judged.ndcg(query, (place for place, _ in judged.rank(client, query))))
    figures = {"ndcg10_candidates": round(statistics.mean(before), 4), "ndcg10_reranked": round(statistics.mean(after), 4)}
    print(json.dumps({"data": judged.name, "queries": len(after)} | figures))


if __name__ == "__main__":
    main()
