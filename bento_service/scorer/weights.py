"""From the files of a store entry to an encoder in the precision that runs: which layers take the place of the saved ones, packed or padded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
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
    quantised = info.quantization in ("int8", "nf4")
    # What is not quantised of such a model was saved in bf16 and stays so in memory where it can, whatever flows between its layers.
    dtype = torch.bfloat16 if quantised and precision.kernel != "torch" else precision.dtype
    with _nothing_made_up() if quantised else contextlib.nullcontext():
        model = _family(info).from_pretrained(
            str(folder), dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=info.trust_remote_code
        )
    if quantised:
        _put_in(model, read_parts(folder / QUANTISED_FILE), precision, device)
    model = model.to(device).eval()
    own = not info.trust_remote_code and precision.kernel != "bitsandbytes"
    packed = info.kind != "yes-no" and own and runs_packed(model.config, device, precision.dtype)
    if not packed:
        model.base_model.to(precision.dtype)
    _restore_head(model, folder)
    pooling = None if info.kind == "cross-encoder" else info.pooling or "mean"
    if packed:
        head = _PackedHead(model) if info.kind == "cross-encoder" else None
        return _encoder(info, PackedForward(model.base_model, model.config, head=head, pooling=pooling, dtype=precision.dtype))
    if device.type == "cpu":
        _lay_out(model, precision.dtype, dense=own)
    if info.kind == "yes-no":
        return make_yes_no(model, info, device)
    for _name, module in head_modules(model):
        module.register_forward_pre_hook(_in_full_precision, with_kwargs=True)
    pad_id = model.config.pad_token_id or 0
    forward = PaddedForward(model, pad_id=pad_id, uses_token_types=info.uses_token_types, pooling=pooling, device=device)
    return _encoder(info, forward)


@contextlib.contextmanager
def _nothing_made_up() -> Iterator[None]:
    """Let transformers leave the layers alone that its files lack, which it would fill with random numbers.

    So they take no memory until the quantised ones are in their place, and on a GPU none at all.
    """
    fill = PreTrainedModel._initialize_weights  # noqa: SLF001  there is no option for it

    def leave_linears(model: Any, module: torch.nn.Module, *rest: Any) -> None:
        if not isinstance(module, torch.nn.Linear):
            fill(model, module, *rest)

    PreTrainedModel._initialize_weights = leave_linears  # noqa: SLF001
    try:
        yield
    finally:
        PreTrainedModel._initialize_weights = fill  # noqa: SLF001


def _family(info: ModelInfo) -> Any:
    if info.kind == "bi-encoder":
        return AutoModel
    return AutoModelForCausalLM if info.answers else AutoModelForSequenceClassification


def _encoder(info: ModelInfo, forward: Forward) -> Encoder:
    return CrossEncoder(forward) if info.kind == "cross-encoder" else BiEncoder(forward)


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


class _PackedHead(torch.nn.Module):
    """The model's own head alone, for hidden states of first tokens: float32, shape (n_sequences, hidden)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        kind = model.config.model_type
        self.pooler = model.bert.pooler if kind == "bert" else None
        self.pre_classifier = model.pre_classifier if kind == "distilbert" else None
        self.classifier = model.classifier

    def forward(self, first: torch.Tensor) -> torch.Tensor:
        """Logits: float32, shape (n_sequences, 1)."""
        if self.pre_classifier is not None:
            first = torch.relu(self.pre_classifier(first))
        elif self.pooler is not None:
            first = self.pooler(first[:, None])
        else:
            first = first[:, None]
        logits: torch.Tensor = self.classifier(first)
        return logits


def _put_in(model: Any, parts: dict[str, Parts], precision: Precision, device: torch.device) -> None:
    """Put quantised layers where their full ones were, or unpack them where they cannot run as they are."""
    for name, own in parts.items():
        if precision.kernel == "onednn":
            model.set_submodule(name, Int8Weights(own))
        elif precision.kernel == "bitsandbytes":
            from bento_service.scorer import bitsandbytes_linear  # noqa: PLC0415  an optional library that takes seconds

            model.set_submodule(name, bitsandbytes_linear.make(own, precision.dtype, device))
        else:
            linear = model.get_submodule(name)
            weight, bias = unpacked(own)
            linear.weight.data = weight.to(device, precision.dtype)
            if bias is not None:
                linear.bias.data = bias.to(device, precision.dtype)


def _lay_out(model: Any, dtype: torch.dtype, *, dense: bool) -> None:
    """Let oneDNN multiply what transformers runs; dense: full layers too, which a model's own code may want to look into."""
    head = {id(part) for _, module in head_modules(model) for part in module.modules()}
    wanted = (torch.nn.Linear, Int8Weights) if dense else (Int8Weights,)
    linears = [name for name, module in model.named_modules() if type(module) in wanted and id(module) not in head]
    outputs = model.get_output_embeddings()
    for name in linears:
        module = model.get_submodule(name)
        if module is not outputs:
            model.set_submodule(name, as_linear(module, dtype))
