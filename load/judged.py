"""nDCG@10 of a bi-encoder on judged data, without a server; the folder is as load/evaluate.py says."""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

import evaluate
from micro_batches import Engine, outputs_of


class Judged:
    """Candidates and grades by query, and token ids of all its texts."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, queries_at_most: int | None) -> None:
        queries, passages = evaluate.texts(folder / "queries.tsv"), evaluate.texts(folder / "passages.tsv")
        self.candidates, self.grades = defaultdict(list), defaultdict(dict)
        for line in (folder / "run.trec").read_text().splitlines():
            query, _, passage, *_ = line.split()
            self.candidates[query].append(passage)
        self.candidates = dict(itertools.islice(self.candidates.items(), queries_at_most))
        for line in (folder / "qrels.txt").read_text().splitlines():
            query, _, passage, grade = line.split()
            self.grades[query][passage] = int(grade)
        wanted = sorted({passage for found in self.candidates.values() for passage in found})
        self.places = {name: place for place, name in enumerate([*self.candidates, *wanted])}
        texts = [queries[query] for query in self.candidates] + [passages[passage] for passage in wanted]
        self.encodings = tokenizer.encode_batch(texts)

    def cosines(self, engine: Engine) -> list[np.ndarray]:
        """Of each query with its candidates, in their order."""
        vectors = outputs_of(engine, self.encodings, 16)
        return [
            (vectors[[self.places[passage] for passage in found]] @ vectors[self.places[query]]).numpy()
            for query, found in self.candidates.items()
        ]

    def ndcg(self, cosines: Sequence[np.ndarray]) -> float:
        """nDCG@10, mean over queries."""
        values = []
        for (query, found), scores in zip(self.candidates.items(), cosines, strict=True):
            ranked = [found[place] for place in np.argsort(-scores, kind="stable")]
            grades = self.grades[query]
            values.append(evaluate.ndcg([grades.get(passage, 0) for passage in ranked], list(grades.values())))
        return statistics.mean(values)
