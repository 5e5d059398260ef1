"""The prompt of a yes/no reranker: found in the model's own files, known by its name, or given; taken apart once, when it is saved.

Serving joins strings and renders nothing.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from bento_service.errors import ModelError

# The prompt of Qwen3-Reranker's card, as a chat template with the roles that sentence-transformers and vLLM give to a pair;
# `system` is the instruction.
_QWEN3 = (
    "<|im_start|>system\n"
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
    '<Instruct>: {{ messages | selectattr("role", "eq", "system") | map(attribute="content") | first'
    ' | default("Given a web search query, retrieve relevant passages that answer the query") }}\n'
    '<Query>: {{ messages | selectattr("role", "eq", "query") | map(attribute="content") | first }}\n'
    '<Document>: {{ messages | selectattr("role", "eq", "document") | map(attribute="content") | first }}<|im_end|>\n'
    '<|im_start|>assistant\n<think>\n\n</think>\n\n{{ "" }}'  # without which Jinja would drop the last line's end
)
_KNOWN = {"qwen3": _QWEN3}
# Characters that no template has stand for the texts; the blanks tell whether a template changes what it is given.
_INSTRUCTION, _QUERY, _DOCUMENT = "\ue000", " \ue001 ", " \ue002 "
# What sentence-transformers keeps beside the arguments of a template, for the tokenizer and for itself.
_NOT_FOR_TEMPLATES = {"padding", "truncation", "max_length", "return_tensors", "restore_suffix"}


@dataclass(frozen=True, slots=True)
class Template:
    """What stands before a query (with {instruction} in instruction_prompt), before a document and behind it."""

    query_prompt: str = ""
    instruction_prompt: str | None = None
    document_prompt: str = ""
    suffix: str = ""


def find_template(
    tokenizer: Any, *, asked: str | None, origin: str, architecture: str, settings: dict[str, Any], sentence: dict[str, Any]
) -> Template | None:
    """Find a model's prompt: what was asked for, else its own chat template if that takes a query and a document, else by its name.

    asked: `qwen3`, or a file with a chat template · origin: the model's name where it comes from · settings, sentence: its
    config_sentence_transformers.json and sentence_bert_config.json. Raises ModelError if what was asked for will not do.
    """
    default = (settings.get("prompts") or {}).get(settings.get("default_prompt_name"))
    options = (sentence.get("processing_kwargs") or {}).get("chat_template") or {}
    options = {name: value for name, value in options.items() if name not in _NOT_FOR_TEMPLATES}
    if asked is not None:
        return _taken_apart(tokenizer, _source_of(asked), default, options, name="the template")
    own = tokenizer.chat_template
    # One that passes on any role would take a pair too, but was not written for one; and templates for chats name documents.
    if isinstance(own, str) and "query" in own and "document" in own:
        with contextlib.suppress(ModelError):
            return _taken_apart(tokenizer, own, default, options, name="the model's chat template")
    if architecture.startswith("Qwen3For") and "qwen3-reranker" in origin.lower():
        return _taken_apart(tokenizer, _QWEN3, default, {}, name="the template")
    return None


def find_answers(folder: Path, modules: Any, tokenizer: Any) -> list[int]:
    """Find the tokens whose logits are a language model's answer: yes, and no where the model has one; ModelError without."""
    module = next((module for module in modules or [] if is_logit_score(module)), None)
    if module is None:
        vocabulary = tokenizer.get_vocab()
        if "yes" not in vocabulary or "no" not in vocabulary:
            raise ModelError("the tokenizer has no token `yes` or no token `no`, so this model cannot answer: choose another")
        return [vocabulary["yes"], vocabulary["no"]]
    try:
        settings = json.loads((folder / module["path"] / "config.json").read_text(encoding="utf-8"))
        answers = [settings["true_token_id"], settings.get("false_token_id")]
    except (OSError, ValueError, KeyError):
        raise ModelError(
            f"{module['path']}/config.json does not say which tokens are the answers: give a complete model"
        ) from None
    return [int(answer) for answer in answers if answer is not None]


def is_logit_score(module: Any) -> bool:
    """Tell whether a module of modules.json is sentence-transformers' reader of a language model's answer."""
    return str(module["type"]).endswith("LogitScore")


def _source_of(asked: str) -> str:
    """Read a template that was asked for by its name or file."""
    if asked in _KNOWN:
        return _KNOWN[asked]
    try:
        return Path(asked).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ModelError(f"--template {asked} is neither a file nor one of {', '.join(_KNOWN)}: check the path") from None


def _taken_apart(tokenizer: Any, source: str, default: str | None, options: dict[str, Any], *, name: str) -> Template:
    """Render a chat template around marks and see what stands between them; ModelError if that cannot be its whole effect."""
    plain = _rendered(tokenizer, source, default, options, name=name)
    before, between, after = _between_marks(plain, name)
    asking, *rest = _between_marks(_rendered(tokenizer, source, _INSTRUCTION, options, name=name), name)
    takes_instruction = asking.count(_INSTRUCTION) == 1 and rest == [between, after]
    tokens = [str(token) for token in tokenizer.added_tokens_decoder.values() if not token.lstrip]
    if after and not after.startswith(tuple(tokens)):
        raise ModelError(
            f"{name} goes on behind the document without a special token, which is not supported: choose another model"
        )
    return Template(before, asking.replace(_INSTRUCTION, "{instruction}") if takes_instruction else None, between, after)


def _rendered(tokenizer: Any, source: str, system: str | None, options: dict[str, Any], *, name: str) -> str:
    messages = [{"role": "query", "content": _QUERY}, {"role": "document", "content": _DOCUMENT}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    try:
        return str(tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, **options))
    except (TemplateError, TypeError, ValueError) as error:
        raise ModelError(f"{name} cannot be rendered ({type(error).__name__}: {error}): correct it") from None


def _between_marks(text: str, name: str) -> tuple[str, str, str]:
    if text.count(_QUERY) != 1 or text.count(_DOCUMENT) != 1 or text.index(_QUERY) > text.index(_DOCUMENT):
        raise ModelError(
            f"{name} does not give the query and then the document, each once and unchanged, from messages of the roles "
            "`query` and `document`: correct it"
        )
    before, _, rest = text.partition(_QUERY)
    between, _, after = rest.partition(_DOCUMENT)
    return before, between, after
