"""What kind of model a folder holds, and what serving it needs to know."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from transformers import AutoConfig, AutoTokenizer

from bento_service.errors import ModelError
from bento_service.model_info import Activation, Kind
from model_store_scripts.templates import Template, find_answers, find_template, is_logit_score

_SHORTEST = 16  # special tokens, a query and some words; RERANKER_MAX_LENGTH has the same bound
_UNBOUNDED = 1_000_000  # tokenizers say 10**30 when they do not know their window
# What Qwen3-Reranker's own code cuts its prompts to. They can read five times as much, but a pass of that length takes minutes on a CPU.
_YES_NO_WINDOW = 8192
# Where a configuration has one of these, a logit is not just the last hidden state times a token's row of the output matrix.
_LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")
# How E5, GTE and Qwen3 write the instruction of a query; a request may bring one of its own.
_INSTRUCTION = re.compile(r"(Instruct: ).+?(\n ?Query: ?)", re.DOTALL)
_PADDING_OFFSET_TYPES = {"roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "mpnet"}


@dataclass(frozen=True, slots=True)
class Findings:
    """What inspect() found out; tokenizer and config are transformers' own."""

    kind: Kind
    architecture: str
    max_length: int
    activation: Activation
    uses_token_types: bool
    pooling: Literal["mean", "cls", "max"] | None
    query_prompt: str
    document_prompt: str
    instruction_prompt: str | None
    suffix: str
    answers: list[int] | None
    tokenizer: Any
    config: Any


def inspect(
    folder: Path,
    *,
    kind: Kind | None,
    max_length: int | None,
    activation: Activation | None,
    trust_remote_code: bool,
    origin: str = "",
    template: str | None = None,
) -> Findings:
    """Read a model's configuration; raises ModelError that says what to do.

    origin: the model's name where it comes from · template: for a yes/no model, as find_template() takes it.
    """
    config = _load_config(folder, trust_remote_code=trust_remote_code)
    architecture = (config.architectures or ["unknown"])[0]
    modules = _read_json(folder / "modules.json")
    tokenizer = _load_tokenizer(folder, trust_remote_code=trust_remote_code)
    sentence = _read_json(folder / "sentence_bert_config.json") or {}
    settings = _read_json(folder / "config_sentence_transformers.json") or {}
    if template is not None:
        kind = kind or _kind(architecture, config, modules, templated=True)
        if kind != "yes-no":
            raise ModelError(f"--template is for yes/no models, and this is a {kind}: leave it out, or pass --kind yes-no")
    found = find_template(
        tokenizer, asked=template, origin=origin, architecture=architecture, settings=settings, sentence=sentence
    )
    kind = kind or _kind(architecture, config, modules, templated=found is not None)
    causal = architecture.endswith("ForCausalLM")
    labels = config.num_labels
    if labels != 1 and (kind == "cross-encoder" or (kind == "yes-no" and not causal)):
        raise ModelError(f"this model has {labels} labels, a reranker has one: choose another model")
    prompts = _prompts(kind, found, settings, causal=causal)
    if kind == "yes-no" and causal and any(getattr(config, name, None) not in (None, 1.0) for name in _LOGIT_CHANGES):
        raise ModelError(
            f"the logits of a {config.model_type} are more than a product, which is not supported: choose another model"
        )
    window = _window(config, tokenizer, sentence if kind == "bi-encoder" else {})
    if max_length is not None and max_length < _SHORTEST:
        raise ModelError(f"--max-length {max_length} is under {_SHORTEST}, too little for a query and a document: raise it")
    if max_length is not None and max_length > window:
        raise ModelError(f"--max-length {max_length} is over the model's window of {window} tokens: lower it")
    if sentence.get("do_lower_case"):
        raise ModelError("this model wants its texts in lower case before its tokenizer (do_lower_case), which is not supported")
    if kind == "yes-no":
        window = min(window, _YES_NO_WINDOW) if max_length is None else max_length
        _require_room(prompts, tokenizer, window)
    bi_encoder = kind == "bi-encoder"
    return Findings(
        kind=kind,
        architecture=architecture,
        max_length=max_length or window,
        activation="cosine" if bi_encoder else activation or _activation(config, settings),
        uses_token_types="token_type_ids" in tokenizer.model_input_names,
        pooling=_pooling(folder, modules, prompted=any((settings.get("prompts") or {}).values())) if bi_encoder else None,
        query_prompt=prompts.query_prompt,
        instruction_prompt=prompts.instruction_prompt,
        document_prompt=prompts.document_prompt,
        suffix=prompts.suffix,
        answers=find_answers(folder, modules, tokenizer) if kind == "yes-no" and causal else None,
        tokenizer=tokenizer,
        config=config,
    )


def _kind(architecture: str, config: Any, modules: Any, *, templated: bool) -> Kind:
    if architecture.endswith("ForSequenceClassification"):
        # Every Qwen3 of this kind that is known was made from Qwen3-Reranker, whose scores without its prompt are noise.
        return "yes-no" if templated or config.model_type == "qwen3" else "cross-encoder"
    if modules and not any(map(is_logit_score, modules)):
        return "bi-encoder"
    if architecture.endswith("ForCausalLM"):
        return "yes-no"
    raise ModelError(
        f"cannot tell what kind of reranker a {architecture} ({config.model_type}) is: pass --kind cross-encoder or --kind bi-encoder"
    )


def _prompts(kind: Kind, found: Template | None, settings: dict[str, Any], *, causal: bool) -> Template:
    """Choose what stands before and behind the texts; ModelError where a model needs a template and has none."""
    if kind == "yes-no":
        if found is None:
            raise ModelError(
                "this model scores a pair in a prompt, and its files have none that is made for pairs: pass --template qwen3 (make: TEMPLATE=qwen3) if it is "
                "of the Qwen3-Reranker family, or --template FILE with a chat template of the roles query and document"
                + ("" if causal else "; if it was trained on bare pairs, pass --kind cross-encoder")
            )
        return found
    prompts = (settings.get("prompts") or {}) if kind == "bi-encoder" else {}
    query_prompt = prompts.get("query") or ""
    instruction = _INSTRUCTION.fullmatch(query_prompt)
    return Template(
        query_prompt,
        f"{instruction[1]}{{instruction}}{instruction[2]}" if instruction else None,
        # Some authors say `passage`; sentence-transformers itself knows only `document` and leaves theirs out.
        prompts.get("document") or prompts.get("passage") or "",
    )


def _require_room(prompts: Template, tokenizer: Any, max_length: int) -> None:
    """Refuse a window that the prompt alone would fill; three quarters of it may stand before a document."""
    lead, suffix = (
        len(tokenizer(text, add_special_tokens=False).input_ids)
        for text in (prompts.query_prompt + prompts.document_prompt, prompts.suffix)
    )
    least = (lead + _SHORTEST) * 4 // 3 + suffix
    if max_length < least:
        raise ModelError(
            f"a window of {max_length} tokens is too little beside the model's own prompt: pass --max-length {least} or more"
        )


def _load_config(folder: Path, *, trust_remote_code: bool) -> Any:
    if not (folder / "config.json").is_file():
        raise ModelError("the model has no config.json: give a complete model")
    try:
        return AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError, OSError) as error:
        kind = (_read_json(folder / "config.json") or {}).get("model_type", "unknown")
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"the {kind} architecture brings its own code: read that code, then pass --trust-remote-code if you trust it"
            ) from None
        raise ModelError(
            f"transformers does not know the architecture {kind}: update transformers or choose another model"
        ) from None


def _load_tokenizer(folder: Path, *, trust_remote_code: bool) -> Any:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt", "vocab.json")) and not any(
        folder.glob("*.model")
    ):
        raise ModelError("the model has no tokenizer files: give a complete model")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, use_fast=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:
        raise ModelError(f"the model's tokenizer cannot be loaded ({type(error).__name__}): give a complete model") from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelError("the model has only a slow tokenizer: save it with a tokenizer.json first")
    return tokenizer


def _window(config: Any, tokenizer: Any, sentence: dict[str, Any]) -> int:
    """Find how many tokens of a sequence the model reads: the least of what config, tokenizer and sentence-transformers say."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions and config.model_type in _PADDING_OFFSET_TYPES:
        positions -= (config.pad_token_id or 0) + 1  # their position numbers start behind the padding's
    limits = [positions, tokenizer.model_max_length, sentence.get("max_seq_length")]
    known = [int(limit) for limit in limits if limit and 0 < limit < _UNBOUNDED]
    if not known:
        raise ModelError("the model does not say how long its window is: pass --max-length")
    return min(known)


def _activation(config: Any, settings: dict[str, Any]) -> Activation:
    """Read the model's own activation from the places where sentence-transformers writes it, newest first; else sigmoid."""
    declared = (
        settings.get("activation_fn")
        or (getattr(config, "sentence_transformers", None) or {}).get("activation_fn")
        or getattr(config, "sbert_ce_default_activation_function", None)
    )
    name = str(declared or "Sigmoid").rpartition(".")[2]
    if name not in ("Sigmoid", "Identity"):
        raise ModelError(
            f"the model declares the activation {name}, which is not supported: pass --activation sigmoid or identity"
        )
    return cast(Activation, name.lower())


def _pooling(folder: Path, modules: Any, *, prompted: bool) -> Literal["mean", "cls", "max"]:
    """Read the pooling of a sentence-transformers model; mean where the folder has no modules.json."""
    if not modules:
        return "mean"
    unknown = [str(module["type"]).rpartition(".")[2] for module in modules]
    unknown = [name for name in unknown if name not in ("Transformer", "Pooling", "Normalize")]
    if unknown:
        raise ModelError(f"the model has a {unknown[0]} module, which is not supported: choose another model")
    path = next((module["path"] for module in modules if str(module["type"]).endswith("Pooling")), None)
    settings = _read_json(folder / path / "config.json") if path is not None else None
    settings = settings or {}
    if prompted and settings.get("include_prompt") is False:
        raise ModelError("the model leaves its prompt out of the pooling, which is not supported: choose another model")
    flags = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens"}
    chosen = [mode for mode, flag in flags.items() if settings.get(flag) or settings.get("pooling_mode") == mode]
    if len(chosen) != 1:
        raise ModelError("the model's pooling is neither mean, cls nor max: choose another model")
    return cast(Literal["mean", "cls", "max"], chosen[0])


def _read_json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ModelError(f"{path.name} is not JSON: give a complete model") from None
