"""Weights of a loaded model, written in the precision that is asked for, and how far its scores stray from full precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from safetensors.torch import save_file

from bento_service.errors import ModelError
from bento_service.model_info import QUANTISED_FILE, ModelInfo
from bento_service.scorer.device import DTYPES, Precision, choose_precision
from bento_service.scorer.engine import ScoringEngine
from bento_service.scorer.loading import GOLDEN_TOLERANCE, golden_difference, replay
from bento_service.scorer.quantised import Parts, flat
from bento_service.scorer.weights import head_modules, load_encoder
from bento_service.settings import Quantization
from model_store_scripts.calibration import ORDERED, score_texts
from model_store_scripts.inspection import Findings
from model_store_scripts.int8 import inner_linears, quantise

PRECISIONS: tuple[Quantization, ...] = get_args(Quantization)
# Of what is not quantised; a classifier's head stays in float32.
_DTYPES: Mapping[str, torch.dtype] = {**DTYPES, "int8": torch.bfloat16, "nf4": torch.bfloat16}


class PrecisionError(ModelError):
    """The model cannot be had in this precision; another one may do."""


def write_weights(model: Any, findings: Findings, quantization: Quantization, folder: Path) -> str:
    """Write the safetensors and config of a model that is loaded in float32; returns the dtype of what is not quantised."""
    parts: dict[str, Parts] = {}
    if quantization == "int8":
        parts = quantise(model, partial(score_texts, model, findings))
        if not parts:
            raise PrecisionError("this model has no linear layers that int8 could hold: choose another --quantization")
    elif quantization == "nf4":
        parts = _nf4(model)
    if parts:
        save_file(flat(parts), folder / QUANTISED_FILE)
    dtype = _DTYPES[quantization]
    head = tuple(f"{name}." for name, _ in head_modules(model))
    replaced = {f"{layer}.{name}" for layer in parts for name in ("weight", "bias")}
    cast: dict[int, torch.Tensor] = {}  # by what they share, so that tied matrices stay one
    state = {
        name: tensor
        if name.startswith(head) or not tensor.is_floating_point()
        else cast.setdefault(tensor.data_ptr(), tensor.to(dtype))
        for name, tensor in model.state_dict().items()
        if name not in replaced
    }
    model.save_pretrained(folder, state_dict=state, safe_serialization=True)
    return str(dtype).removeprefix("torch.")


def _nf4(model: Any) -> dict[str, Parts]:
    try:
        from bento_service.scorer.bitsandbytes_linear import NF4_BLOCK, quantise_nf4  # noqa: PLC0415  takes seconds, and is wanted here alone
    except ImportError:
        raise PrecisionError("nf4 needs bitsandbytes: pip install bitsandbytes, or choose another --quantization") from None
    fitting = {name: linear for name, linear in inner_linears(model).items() if linear.in_features % NF4_BLOCK == 0}
    if not fitting:
        raise PrecisionError(f"no layer of this model fits nf4's blocks of {NF4_BLOCK} inputs: choose another --quantization")
    return {name: quantise_nf4(linear) for name, linear in fitting.items()}


def faithfulness(folder: Path, info: ModelInfo, reference: Sequence[float] | None) -> dict[str, float]:
    """Measure ModelInfo's `drift` and `order`; PrecisionError where the drift is too much to serve.

    reference: what full precision makes of calibration.ORDERED, 0..1; None where full precision is what is saved.
    Nothing is measured, and nothing returned, where this machine can run the precision in no way.
    """
    device = torch.device("cpu")
    precision = choose_precision(info.quantization, info.quantization, device)
    if precision.fell_back and info.quantization in DTYPES:  # torch emulates it: slowly, and to the same end
        precision = Precision(info.quantization, info.quantization, "to be measured", DTYPES[info.quantization])
    engine = ScoringEngine(load_encoder(folder, info, precision=precision, device=device), device=device)
    drift = golden_difference(engine, folder, info)
    allowed = GOLDEN_TOLERANCE[info.quantization]
    if drift > allowed:
        how = "as it is served" if info.quantization == "none" else f"in {info.quantization}"
        raise PrecisionError(
            f"{how} the model's scores stray by {drift:.3f}, {allowed:g} is allowed: choose another --quantization, or another model"
        )
    if precision.fell_back:
        return {}
    order = 1.0 if reference is None else kendall_tau(replay(engine, folder, info, ORDERED), reference)
    return {"drift": drift, "order": order}


def kendall_tau(scores: Sequence[float], reference: Sequence[float]) -> float:
    """Say how alike two orders of the same things are: 1 the same, -1 reversed. Ties on either side count as neither, as does NaN."""
    first, second = (np.sign(np.subtract.outer(values, values)) for values in (np.array(scores), np.array(reference)))
    told = second != 0
    return float(np.nan_to_num(first * second)[told].mean()) if told.any() else 1.0
