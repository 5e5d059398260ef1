"""A yes/no model behind a real `bentoml serve`."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from bento_service.ranking import activate
from bento_service.tokenizer import Cut
from servers import Server
from small_models import PROMPT_WINDOW, TEXTS, ServedModel, make_yes_no, raw_scores, serve

QUERY = "how long is the river"
DOCUMENTS = list(TEXTS[:5])
INSTRUCTION = "Find what contradicts the query"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    """Save a small model."""
    return serve(make_yes_no(tmp_path_factory.mktemp("served") / "served-yes-no"), template="qwen3")


def expected(model: ServedModel, instruction: str | None) -> list[float]:
    """Score DOCUMENTS without a server, each alone."""
    encode = model.tokenizer.encode_now
    pairs = [encode(QUERY, [text], Cut(), math.inf, 0, instruction=instruction)[0].windows[0] for text in DOCUMENTS]
    return [activate(float(raw_scores(model.engine, [pair])[0]), "sigmoid") for pair in pairs]


def test_an_instruction_changes_scores_and_has_entries_of_its_own(model: ServedModel) -> None:
    """The scores are those of the model without a server; a long document is cut, or read in windows; /health and /info say the kind."""
    with Server(Path(os.environ["BENTOML_HOME"]), RERANKER_MODEL=model.tag, RERANKER_DEVICE="cpu") as server:
        for instruction in (None, INSTRUCTION, "Find what contradicts the query "):
            more = {"instruction": instruction} if instruction else {}
            for known in (0, len(DOCUMENTS)):
                answer = server.post(query=QUERY, documents=DOCUMENTS, **more).json()
                scores = {result["index"]: result["relevance_score"] for result in answer["results"]}
                assert [scores[index] for index in range(len(DOCUMENTS))] == pytest.approx(expected(model, instruction), abs=1e-5)
                assert (answer["meta"]["cached_documents"], answer["meta"]["warnings"]) == (known, [])
        assert max(abs(a - b) for a, b in zip(expected(model, None), expected(model, INSTRUCTION), strict=True)) > 1e-3
        long = " ".join(TEXTS) * 3
        cut = server.post(query=QUERY, documents=[long]).json()
        assert (cut["meta"]["truncated_documents"], cut["usage"]["total_tokens"]) == ([0], PROMPT_WINDOW)
        read = server.post(query=QUERY, documents=[long], long_documents="chunk").json()
        assert read["meta"]["truncated_documents"] == []
        assert read["results"][0]["document_span"]["end"] <= len(long)
        refused = server.post(query=QUERY * 200, documents=["d"])
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "query_too_long")
        assert server.get("/health").json()["model"]["kind"] == "yes-no"
        assert server.get("/info").json()["kind"] == "yes-no"
