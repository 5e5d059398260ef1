"""The golden set: pairs scored by transformers' own forward in float32, for the Scorer to replay at every start."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from bento_service.errors import ModelError
from bento_service.model_info import GoldenPair
from bento_service.ranking import activate
from bento_service.scorer.packed import runs_packed
from model_store_scripts.inspection import Findings

_LONG = "The river rises in the mountains, crosses the plain and reaches the sea after nine hundred kilometres. " * 60
# Its bars for reading and writing weights would stand between the person and the tag; the hub's own bar stays.
transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()  # what is missing is our own line to say
PAIRS = (
    ("what does a reranker do?", "A reranker sorts retrieved documents by how well they answer the query."),
    ("what does a reranker do?", "Bread is baked from flour, water, salt and yeast."),
    ("how long is the river", _LONG),
    ("Größe von Paris", "Paris a une superficie de 105 km² et 2,1 millions d'habitants."),
    ("x", ""),
)


def load_reference(folder: Path, findings: Findings, *, trust_remote_code: bool) -> Any:
    """Load the source's weights in float32; ModelError if they do not fill the architecture."""
    families = {"cross-encoder": AutoModelForSequenceClassification, "bi-encoder": AutoModel}
    family = AutoModelForCausalLM if findings.answers else families.get(findings.kind, AutoModelForSequenceClassification)
    model, report = family.from_pretrained(
        str(folder),
        dtype=torch.float32,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
    )
    rows = model.get_input_embeddings().weight.shape[0]
    if len(findings.tokenizer) > rows:
        raise ModelError(
            f"the tokenizer has {len(findings.tokenizer)} tokens, the weights only {rows}: give files that belong together"
        )
    # A bi-encoder never asks its pooler, so a folder without one is whole.
    missing = [key for key in report["missing_keys"] if findings.kind != "bi-encoder" or "pooler" not in key]
    if missing:
        raise ModelError(f"the weights lack {min(missing)} and {len(missing) - 1} more tensors: give a complete model")
    return model.eval()


def score_golden(model: Any, findings: Findings) -> list[GoldenPair]:
    """Score PAIRS one by one, without our batching, padding or tokenising, on the 0..1 scale."""
    golden = [
        GoldenPair(query=query, document=text, score=reference_score(model, findings, query, text)) for query, text in PAIRS
    ]
    if not all(math.isfinite(pair.score) for pair in golden):
        raise ModelError("the model's scores are not finite numbers: its weights are damaged, give a complete model")
    return golden


def check_padding(model: Any, findings: Findings) -> None:
    """ModelError where a classifier that runs padded does not bear it: one that looks at a text's last token, for instance."""
    if findings.kind != "cross-encoder" or runs_packed(model.config, torch.device("cpu"), torch.float32):
        return
    findings.tokenizer.padding_side = "right"
    queries, texts = zip(*PAIRS, strict=True)

    def logits(places: slice) -> torch.Tensor:
        cut = {"truncation": "only_second", "max_length": findings.max_length}
        inputs = findings.tokenizer(list(queries[places]), list(texts[places]), padding=True, return_tensors="pt", **cut)
        return torch.as_tensor(model(**inputs).logits[:, 0])

    with torch.inference_mode():
        alone = torch.cat([logits(slice(place, place + 1)) for place in range(len(PAIRS))])
        moved = float((logits(slice(None)) - alone).abs().max())
    # As a share of their spread, because logits have no scale.
    if not moved <= 0.01 * float(alone.std()) + 1e-5:
        raise ModelError(
            f"logits move by {moved:.2g} when texts of unlike lengths share a batch: this architecture does not bear padding, choose another model"
        )


def reference_score(model: Any, findings: Findings, query: str, text: str) -> float:
    """Score one pair with transformers alone, on the 0..1 scale."""
    score = {"cross-encoder": _cross_score, "bi-encoder": _bi_score, "yes-no": _yes_no_score}[findings.kind]
    with torch.inference_mode():
        return score(model, findings, query, text)


def _cross_score(model: Any, findings: Findings, query: str, text: str) -> float:
    # Lists, because transformers takes a lone empty document for no document at all.
    inputs = findings.tokenizer([query], [text], truncation="only_second", max_length=findings.max_length, return_tensors="pt")
    return activate(float(model(**inputs).logits[0, 0]), "sigmoid")


def _yes_no_score(model: Any, findings: Findings, query: str, text: str) -> float:
    def ids(of: str, most: int) -> list[int]:
        encoded = findings.tokenizer(of, add_special_tokens=False, truncation=True, max_length=most)
        return list(encoded.input_ids)

    suffix = ids(findings.suffix, findings.max_length)
    prompt = findings.query_prompt + query + findings.document_prompt + text
    inputs = torch.tensor([ids(prompt, findings.max_length - len(suffix)) + suffix])
    logits = model(input_ids=inputs).logits
    if findings.answers is None:
        return activate(float(logits[0, 0]), "sigmoid")
    yes, *no = (float(logits[0, -1, answer]) for answer in findings.answers)
    return activate(yes - sum(no), "sigmoid")


def _bi_score(model: Any, findings: Findings, query: str, text: str) -> float:
    def vector(prompt: str, of: str) -> torch.Tensor:
        inputs = findings.tokenizer(prompt + of, truncation=True, max_length=findings.max_length, return_tensors="pt")
        hidden = model(**inputs).last_hidden_state[0]
        pooled = {"mean": hidden.mean(0), "cls": hidden[0], "max": hidden.amax(0)}[findings.pooling or "mean"]
        return torch.nn.functional.normalize(pooled, dim=0)

    cosine = vector(findings.query_prompt, query) @ vector(findings.document_prompt, text)
    return activate(float(cosine), "cosine")
