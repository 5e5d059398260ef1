"""From the files of a store entry to an encoder in the precision that runs: which layers take the place of the saved ones, packed or padded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from bento_service.model_info import QUANTISED_FILE, ModelInfo
from bento_service.scorer.device import Precision
from bento_service.scorer.encoders import BiEncoder, CrossEncoder, Encoder
from bento_service.scorer.forward import Forward
from bento_service.scorer.linear import Int8Weights, as_linear
from bento_service.scorer.packed import PackedForward, runs_packed
from bento_service.scorer.padded import PaddedForward
from bento_service.scorer.quantised import Parts, read_parts, unpacked
from bento_service.scorer.yes_no import make_yes_no

# Its bars and reports would fill the server's log.
transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()


def load_encoder(folder: Path, info: ModelInfo, *, precision: Precision, device: torch.device) -> Encoder:
    """Load the weights of a stored model onto a device; only safetensors are read."""
    family = _family(info)
    quantised = info.quantization in ("int8", "nf4")
    # What is not quantised of such a model was saved in bf16 and stays so in memory, whatever flows between its layers.
    dtype = torch.bfloat16 if quantised else precision.dtype
    model = family.from_pretrained(
        str(folder), dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=info.trust_remote_code
    )
    _restore_head(model, folder)
    if quantised:
        _put_in(model, read_parts(folder / QUANTISED_FILE), precision)
    model = model.to(device).eval()
    if info.kind == "yes-no":
        if device.type == "cpu" and precision.kernel != "bitsandbytes":
            _lay_out(model.base_model, precision.dtype)
        return make_yes_no(model, info, device)
    forward = _forward(model, info, precision, device)
    return CrossEncoder(forward) if info.kind == "cross-encoder" else BiEncoder(forward)


def _family(info: ModelInfo) -> Any:
    if info.kind == "bi-encoder":
        return AutoModel
    return AutoModelForCausalLM if info.answers else AutoModelForSequenceClassification


def _forward(model: Any, info: ModelInfo, precision: Precision, device: torch.device) -> Forward:
    own = not info.trust_remote_code and precision.kernel != "bitsandbytes"
    pooling = None if info.kind == "cross-encoder" else info.pooling or "mean"
    if own and runs_packed(model.config, device, precision.dtype):
        head = _packed_head(model) if info.kind == "cross-encoder" else None
        return PackedForward(model.base_model, model.config, head=head, pooling=pooling, dtype=precision.dtype)
    model.base_model.to(precision.dtype)
    for _name, module in head_modules(model):
        module.float().register_forward_pre_hook(_in_full_precision, with_kwargs=True)
    if own and device.type == "cpu":
        _lay_out(model, precision.dtype)
    return PaddedForward(
        model,
        pad_id=model.config.pad_token_id or 0,
        uses_token_types=info.uses_token_types,
        pooling=pooling,
        device=device,
    )


def head_modules(model: Any) -> Iterator[tuple[str, Any]]:
    """The modules of a classifier behind its layers, which are small and stay in full precision; a bi-encoder and a language model have none."""
    base = model.base_model
    if base is model or model.get_output_embeddings() is not None:
        return
    yield from ((name, module) for name, module in model.named_children() if module is not base)
    pooler = getattr(base, "pooler", None)
    if pooler is not None:
        yield f"{model.base_model_prefix}.pooler", pooler


def _restore_head(model: Any, folder: Path) -> None:
    """Load the head anew as it was saved: from_pretrained() casts everything to one dtype."""
    tensors: dict[str, torch.Tensor] = {}
    names = {f"{prefix}.{name}" for prefix, module in head_modules(model) for name in module.state_dict()}
    for path in folder.glob("model*.safetensors"):
        with safe_open(str(path), "pt") as file:
            tensors |= {name: file.get_tensor(name).float() for name in names & set(file.keys())}
    for prefix, module in head_modules(model):
        module.float()
        own = {name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}
        module.load_state_dict(own, strict=False)


def _in_full_precision(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def full(value: Any) -> Any:
        return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return tuple(full(value) for value in args), {name: full(value) for name, value in kwargs.items()}


def _packed_head(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Run the model's own head on hidden states of first tokens: float32, shape (n_sequences, hidden)."""
    kind = model.config.model_type
    if kind == "bert":
        return lambda first: model.classifier(model.bert.pooler(first[:, None]))
    if kind == "distilbert":
        return lambda first: model.classifier(torch.relu(model.pre_classifier(first)))
    return lambda first: model.classifier(first[:, None])


def _put_in(model: Any, parts: dict[str, Parts], precision: Precision) -> None:
    """Put quantised layers where their full ones were, or unpack them where they cannot run as they are."""
    for name, own in parts.items():
        if precision.kernel == "onednn":
            model.set_submodule(name, Int8Weights(own))
        elif precision.kernel == "bitsandbytes":
            from bento_service.scorer import bitsandbytes_linear  # noqa: PLC0415  an optional library that takes seconds

            model.set_submodule(name, bitsandbytes_linear.make(own, precision.dtype))
        else:
            linear = model.get_submodule(name)
            weight, bias = unpacked(own)
            linear.weight.data = weight.to(precision.dtype)
            if bias is not None:
                linear.bias.data = bias.to(precision.dtype)


def _lay_out(model: Any, dtype: torch.dtype) -> None:
    """Let oneDNN multiply what transformers runs."""
    head = {id(part) for _, module in head_modules(model) for part in module.modules()}
    linears = [
        name
        for name, module in model.named_modules()
        if type(module) in (torch.nn.Linear, Int8Weights) and id(module) not in head
    ]
    for name in linears:
        model.set_submodule(name, as_linear(model.get_submodule(name), dtype))
