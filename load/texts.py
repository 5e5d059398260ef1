"""Texts for benchmarks: pseudo-words with log-normal document lengths, a mean of about 107 tokens a pair for BERT's tokenizer."""

from __future__ import annotations

import random

_SYLLABLES = [
    "ra",
    "te",
    "mo",
    "li",
    "su",
    "ven",
    "dor",
    "ka",
    "pri",
    "an",
    "est",
    "gol",
    "hu",
    "min",
    "ser",
    "ta",
    "lo",
    "be",
    "chi",
    "nor",
]
_VOCABULARY = 4000
_LOG_MEAN, _LOG_DEVIATION = 3.7, 0.55  # of words in a document: median 40
_FEWEST_WORDS, _MOST_WORDS = 6, 200
_QUERY_WORDS = 4


class Texts:
    """A seeded stream of queries and documents; no text comes twice."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._words = ["".join(self._random.choices(_SYLLABLES, k=self._random.randint(1, 3))) for _ in range(_VOCABULARY)]

    def query(self) -> str:
        """Four words."""
        return " ".join(self._random.choices(self._words, k=_QUERY_WORDS))

    def document(self) -> str:
        """6 to 200 words, 46 on average."""
        count = int(self._random.lognormvariate(_LOG_MEAN, _LOG_DEVIATION))
        return " ".join(self._random.choices(self._words, k=max(_FEWEST_WORDS, min(_MOST_WORDS, count))))

    def request(self, documents: int) -> tuple[str, list[str]]:
        """One query and its documents."""
        return self.query(), [self.document() for _ in range(documents)]
