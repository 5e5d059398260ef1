"""Our scores are sentence-transformers' scores: every architecture, truncation, Unicode, activations, pooling, prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

from bento_service.errors import ModelError
from bento_service.pairs import TokenPair
from bento_service.ranking import activate
from bento_service.scorer.padded import padded
from bento_service.scorer.row import Row
from bento_service.tokenizer import Cut
from model_store_scripts.sources import find_source
from small_models import (
    ARCHITECTURES,
    DOCUMENTS,
    PAIRS,
    QUERIES,
    WINDOW,
    ServedModel,
    make_bi_encoder,
    make_cross_encoder,
    raw_scores,
    serve,
)

pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = 1e-4
BITE = 1e-3
PADDED = ("deberta-v2", "modernbert")  # the other architectures are packed, and have no mask
SHORT_PAIRS = [(query, document) for query in QUERIES for document in DOCUMENTS[:8]]
Served = Callable[[str], tuple[Path, ServedModel]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Return a function that makes a small cross-encoder of an architecture and takes it through the store, once."""
    known: dict[str, tuple[Path, ServedModel]] = {}

    def get(architecture: str) -> tuple[Path, ServedModel]:
        if architecture not in known:
            folder = make_cross_encoder(tmp_path_factory.mktemp("parity") / architecture, architecture)
            known[architecture] = folder, serve(folder)
        return known[architecture]

    return get


def reference_logits(folder: Path, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """Score with sentence-transformers, without an activation."""
    return CrossEncoder(str(folder), device="cpu", local_files_only=True).predict(list(pairs), activation_fn=torch.nn.Identity())


def reference_cosines(folder: Path, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """Cosines of sentence-transformers' query and document embeddings."""
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    queries = model.encode_query([query for query, _ in pairs], normalize_embeddings=True)
    documents = model.encode_document([document for _, document in pairs], normalize_embeddings=True)
    return (queries * documents).sum(1)


def difference(ours: Sequence[float] | np.ndarray, theirs: np.ndarray) -> float:
    """Return the largest difference between two lists of scores."""
    assert len(ours) == len(theirs)
    return float(np.abs(np.asarray(ours, np.float64) - theirs).max())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_raw_scores_are_the_logits_of_the_reference(served: Served, architecture: str) -> None:
    """Whatever the architecture, length and script of the texts."""
    folder, model = served(architecture)
    reference = reference_logits(folder, PAIRS)
    assert reference.std() >= 1.0
    assert difference(model.raw(PAIRS), reference) < TOLERANCE


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_final_scores_are_those_of_predict(served: Served, architecture: str) -> None:
    """The activation that the model's metadata names is the one that predict() applies by default."""
    folder, model = served(architecture)
    reference = CrossEncoder(str(folder), device="cpu", local_files_only=True).predict(list(PAIRS))
    assert difference([activate(float(raw), model.info.activation) for raw in model.raw(PAIRS)], reference) < TOLERANCE


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_compared_pairs_are_short_long_and_cut(served: Served, architecture: str) -> None:
    """The pairs of the comparison cover what it claims: at least 40, of many lengths, some of them cut."""
    _, model = served(architecture)
    deadline = float("inf")
    pairs = [model.tokenizer.encode_now(query, [document], Cut(), deadline, 0)[0] for query, document in PAIRS]
    assert len(pairs) >= 40
    assert len({pair.token_count for pair in pairs}) > 15
    cut = [pair.token_count for pair in pairs if pair.truncated]
    assert len(cut) >= 8
    assert set(cut) == {WINDOW}


def test_a_declared_identity_leaves_logits_as_they_are(tmp_path: Path) -> None:
    """A config that declares Identity makes predict() return logits, and us too."""
    declared = {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.1.0"}
    folder = make_cross_encoder(tmp_path / "declared-identity", sentence_transformers=declared)
    model = serve(folder)
    reference = CrossEncoder(str(folder), device="cpu", local_files_only=True).predict(list(PAIRS))
    assert reference.max() > 1.0
    assert difference([activate(float(raw), model.info.activation) for raw in model.raw(PAIRS)], reference) < TOLERANCE


def test_an_identity_declared_by_an_old_version_is_known_too(tmp_path: Path) -> None:
    """Before version 4, sentence-transformers declared it under another name."""
    declared = {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}
    assert serve(make_cross_encoder(tmp_path / "old-identity", **declared)).info.activation == "identity"


def test_an_activation_saved_by_sentence_transformers_itself_is_applied(served: Served, tmp_path: Path) -> None:
    """CrossEncoder.save_pretrained declares its activation in config_sentence_transformers.json, not in config.json."""
    folder = tmp_path / "saved-identity"
    original, _ = served("bert")
    CrossEncoder(str(original), device="cpu", activation_fn=torch.nn.Identity(), local_files_only=True).save_pretrained(
        str(folder)
    )
    model = serve(folder)
    reference = CrossEncoder(str(folder), device="cpu", local_files_only=True).predict(list(PAIRS))
    assert difference([activate(float(raw), model.info.activation) for raw in model.raw(PAIRS)], reference) < TOLERANCE


def test_the_built_in_gives_the_reference_s_cosines() -> None:
    """The built-in model out of the store, against the files of its wheel."""
    model = serve("builtin")
    reference = reference_cosines(find_source("builtin", None).folder, PAIRS)
    assert reference.std() > 0.1
    assert difference(model.raw(PAIRS), reference) < 1e-5


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_pooling_is_the_model_s_own(tmp_path: Path, pooling: str) -> None:
    """A bi-encoder's cosines, whichever of the three poolings it names."""
    folder = make_bi_encoder(tmp_path, pooling=pooling)
    model = serve(folder, name=f"pooling-{pooling}")
    reference = reference_cosines(folder, PAIRS)
    assert reference.std() > 0.03
    assert difference(model.raw(PAIRS), reference) < 1e-5


def test_prompts_stand_before_queries_and_documents(tmp_path: Path) -> None:
    """The prompts of config_sentence_transformers.json count, also where a document is cut."""
    folder = make_bi_encoder(tmp_path, prompts={"query": "find what answers this: ", "document": "passage: "})
    model = serve(folder, name="prompts")
    assert difference(model.raw(PAIRS), reference_cosines(folder, PAIRS)) < 1e-5


def test_a_model_that_leaves_its_prompt_out_of_the_pooling_is_not_scored_wrongly(tmp_path: Path) -> None:
    """include_prompt=false is not supported, so saving such a model is refused."""
    folder = make_bi_encoder(tmp_path, prompts={"query": "find what answers this: ", "document": "passage: "})
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps(json.loads(pooling.read_text()) | {"include_prompt": False}))
    with pytest.raises(ModelError, match="prompt"):
        serve(folder, name="include-prompt")


@pytest.mark.parametrize("architecture", ["bert", "electra"])
def test_token_types_left_out_would_be_noticed(served: Served, architecture: str) -> None:
    """The comparison bites: all-zero token types change the logits."""
    folder, model = served(architecture)
    without = [TokenPair(pair.ids, None, pair.split, pair.deadline, pair.request) for pair in model.tokens(PAIRS)]
    assert difference(raw_scores(model.engine, without), reference_logits(folder, PAIRS)) > BITE


@pytest.mark.parametrize("architecture", PADDED)
def test_an_attention_mask_left_out_would_be_noticed(served: Served, architecture: str) -> None:
    """The comparison bites: padding that is attended to changes the logits."""
    folder, model = served(architecture)
    forward = model.engine._encoder._forward
    rows = [Row(pair.ids, pair.type_ids) for pair in model.tokens(SHORT_PAIRS)]
    inputs = padded(rows, forward._pad_id, uses_token_types=model.info.uses_token_types, device=torch.device("cpu"))
    reference = reference_logits(folder, SHORT_PAIRS)

    def logits() -> np.ndarray:
        with torch.inference_mode():
            return forward._model(**inputs).logits[:, 0].numpy()

    assert difference(logits(), reference) < TOLERANCE
    del inputs["attention_mask"]
    assert difference(logits(), reference) > BITE


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_query_and_document_swapped_would_be_noticed(served: Served, architecture: str) -> None:
    """The comparison bites: the order of a pair changes the logits."""
    folder, model = served(architecture)
    swapped = [(document, query) for query, document in SHORT_PAIRS]
    assert difference(model.raw(swapped), reference_logits(folder, SHORT_PAIRS)) > BITE


@pytest.mark.parametrize("other", ["mean", "max"])
def test_another_pooling_would_be_noticed(tmp_path: Path, other: str) -> None:
    """The comparison bites: scoring a model with another pooling changes the cosines."""
    folder = make_bi_encoder(tmp_path, pooling="max" if other == "mean" else "mean")
    model = serve(folder, name=f"not-{other}")
    model.engine._encoder._forward._pooling = other
    assert difference(model.raw(PAIRS), reference_cosines(folder, PAIRS)) > BITE


def test_prompts_left_out_would_be_noticed(tmp_path: Path) -> None:
    """The comparison bites: a model saved without its prompts gives other cosines."""
    with_prompts = make_bi_encoder(tmp_path / "with", prompts={"query": "find what answers this: ", "document": "passage: "})
    without = serve(make_bi_encoder(tmp_path / "without"), name="without-prompts")
    assert difference(without.raw(PAIRS), reference_cosines(with_prompts, PAIRS)) > BITE
