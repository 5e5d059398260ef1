"""From a stored model to a scorer that is ready: load, check against the golden set, warm up."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bento_service.errors import ModelError
from bento_service.model_info import TOKENIZER_FILE, Activation, ModelInfo
from bento_service.ranking import activate
from bento_service.scorer.device import Precision, choose_device, choose_precision
from bento_service.scorer.engine import ScoringEngine
from bento_service.scorer.lanes import Lanes
from bento_service.scorer.weights import load_encoder
from bento_service.settings import Settings
from bento_service.tokenizer import Cut, PairTokenizer

logger = logging.getLogger("bentoml.reranker")

GOLDEN_TOLERANCE = {"none": 1e-3, "fp16": 0.03, "bf16": 0.03, "int8": 0.1, "nf4": 0.2}


@dataclass(frozen=True, slots=True)
class LoadedScorer:
    """An engine and what it really runs."""

    engine: ScoringEngine
    device: torch.device
    precision: Precision
    max_length: int
    fingerprint: str
    weight_bytes: int


def load_scorer(folder: Path, info: ModelInfo, settings: Settings, *, index: int = 0, siblings: int = 1) -> LoadedScorer:
    """Load a stored model for model worker `index` of `siblings`.

    Raises ModelError if it cannot run as asked or does not give the scores it gave when it was saved.
    """
    device = choose_device(settings.device, index)
    asked = "auto" if settings.asked_quantization == "auto" else info.quantization
    precision = choose_precision(asked, info.quantization, device, int8_kernel=settings.int8_kernel)
    if precision.fell_back and settings.strict_quantization:
        raise ModelError(
            f"{precision.reason}; RERANKER_STRICT_QUANTIZATION=true does not allow that: choose another QUANTIZATION"
        )
    if precision.fell_back:
        logger.warning("%s", precision.reason)
    lanes = None
    if device.type == "cpu":
        torch.set_num_threads(settings.torch_threads or max(1, torch.get_num_threads() // siblings))
        lanes = Lanes(torch.get_num_threads()) if torch.get_num_threads() > 1 else None
    encoder = load_encoder(folder, info, precision=precision, device=device)
    max_length = info.length_in_use(settings.max_length)
    runs = f"{'packed' if encoder.packs else 'padded'} {precision.kernel} {precision.dtype}"
    fingerprint = info.fingerprint(dtype=precision.effective, device=device.type, max_length=max_length, engine=runs)
    engine = ScoringEngine(
        encoder,
        device=device,
        fingerprint=bytes.fromhex(fingerprint),
        max_batch_tokens=settings.max_batch_tokens,
        micro_batch=settings.micro_batch_enabled,
        lanes=lanes,
    )
    check_golden(engine, folder, info, precision)
    engine.warm_up(max_length)
    return LoadedScorer(engine, device, precision, max_length, fingerprint, encoder.weight_bytes)


def check_golden(engine: ScoringEngine, folder: Path, info: ModelInfo, precision: Precision) -> float:
    """Replay the golden set; returns the largest difference on the 0..1 score, ModelError if it is too large."""
    worst = golden_difference(engine, folder, info)
    tolerance = max(GOLDEN_TOLERANCE[precision.effective], GOLDEN_TOLERANCE[info.quantization])
    if worst > tolerance:
        raise ModelError(
            f"the model does not give the scores it gave when it was saved (off by {worst:.4f}, allowed {tolerance:g} "
            f"in {precision.effective}): save it again with `make model`, or set QUANTIZATION=none"
        )
    return worst


def golden_difference(engine: ScoringEngine, folder: Path, info: ModelInfo) -> float:
    """Replay the golden set; returns the largest difference on the 0..1 score, infinity where there is no finite score."""
    scores = replay(engine, folder, info, [(golden.query, golden.document) for golden in info.golden])
    differences = [abs(score - golden.score) for score, golden in zip(scores, info.golden, strict=True)]
    return max((difference if math.isfinite(difference) else math.inf for difference in differences), default=0.0)


def replay(engine: ScoringEngine, folder: Path, info: ModelInfo, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Score pairs of a query and a document one by one, as the service does, on the 0..1 scale; NaN where that fails."""
    scale: Activation = "cosine" if info.activation == "cosine" else "sigmoid"
    scores = []
    # The reference read them with the model's own window.
    tokenizer = PairTokenizer(folder / TOKENIZER_FILE, info, max_length=info.max_length)
    try:
        for query, document in pairs:
            [pair] = tokenizer.encode_now(query, [document], Cut(), time.monotonic() + 3600, 0)
            scores.append(activate(float(engine.raw_scores(pair.windows)[0]), scale))
    finally:
        tokenizer.close()
    return scores
