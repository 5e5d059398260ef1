"""sentence-transformers' CrossEncoder behind plain FastAPI, as one writes it first: a sync endpoint, every default left alone.

Runs in an environment of its own (sentence-transformers.txt). MODEL_FOLDER names the model.
"""

from __future__ import annotations

import os

from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import CrossEncoder

model = CrossEncoder(os.environ["MODEL_FOLDER"], device="cpu")
app = FastAPI()


class Question(BaseModel):
    """One query and its documents."""

    query: str
    documents: list[str]


class Result(BaseModel):
    """One document's place among those asked about, and its score, 0..1."""

    index: int
    relevance_score: float


class Ranking(BaseModel):
    """The documents, best first."""

    results: list[Result]


@app.get("/health")
def health() -> dict[str, str]:
    """Answer: the model was loaded before the port opened."""
    return {"status": "ok"}


@app.post("/rerank")
def rerank(question: Question) -> Ranking:
    """Score in FastAPI's thread pool: fp32, 32 pairs a forward pass, sorted by length within the request."""
    scores = model.predict([(question.query, document) for document in question.documents])
    results = [Result(index=index, relevance_score=float(score)) for index, score in enumerate(scores)]
    return Ranking(results=sorted(results, key=lambda result: -result.relevance_score))
