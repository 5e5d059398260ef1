"""Raw scores to ranked results: activation, order, threshold, top_n."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bento_service.model_info import Activation


@dataclass(frozen=True, slots=True)
class Ranked:
    """index: place in the caller's list · score: what the caller asked for · rank: 1 is best."""

    index: int
    score: float
    rank: int


def activate(raw: float, activation: Activation) -> float:
    """Turn a logit or cosine into the model's own score.

    sigmoid: 1 / (1 + e^-x), in (0, 1) · cosine: (1 + x) / 2, in [0, 1] · identity: x, for models that declare no activation.
    """
    if activation == "cosine":
        return min(1.0, max(0.0, (1.0 + raw) / 2.0))
    if activation == "identity":
        return raw
    # Two branches, because e^-x overflows for logits below -709.
    return 1.0 / (1.0 + math.exp(-raw)) if raw >= 0 else math.exp(raw) / (1.0 + math.exp(raw))


def rank(scores: Sequence[float], *, top_n: int | None = None, score_threshold: float | None = None) -> list[Ranked]:
    """Order scores highest first, ties by index.

    top_n: None or 0 keeps all · score_threshold: drops what is below it, on the scale of `scores`.
    """
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    kept = [index for index in order if score_threshold is None or scores[index] >= score_threshold]
    return [Ranked(index, scores[index], place) for place, index in enumerate(kept[: top_n or None], start=1)]
