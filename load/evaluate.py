"""nDCG@10 of a running server on judged data: `make evaluate DATA=<folder> URL=http://localhost:3000`.

The folder holds queries.tsv and passages.tsv (id, tab, text), run.trec (candidates) and qrels.txt (grades), as TREC's tracks do.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from pathlib import Path

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


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://localhost:3000")
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    queries, passages = texts(options.data / "queries.tsv"), texts(options.data / "passages.tsv")
    candidates, grades = defaultdict(list), defaultdict(dict)
    for line in (options.data / "run.trec").read_text().splitlines():
        query, _, passage, *_ = line.split()
        candidates[query].append(passage)
    for line in (options.data / "qrels.txt").read_text().splitlines():
        query, _, passage, grade = line.split()
        grades[query][passage] = int(grade)
    before, after = [], []
    with httpx.Client(base_url=options.url, timeout=300) as client:
        for query, found in candidates.items():
            body = {"query": queries[query], "documents": [passages[passage] for passage in found]}
            results = client.post("/v2/rerank", json=body).raise_for_status().json()["results"]
            ideal = list(grades[query].values())
            before.append(ndcg([grades[query].get(passage, 0) for passage in found], ideal))
            after.append(ndcg([grades[query].get(found[item["index"]], 0) for item in results], ideal))
    figures = {"ndcg10_candidates": round(statistics.mean(before), 4), "ndcg10_reranked": round(statistics.mean(after), 4)}
    print(json.dumps({"data": options.data.name, "queries": len(after)} | figures))


if __name__ == "__main__":
    main()
