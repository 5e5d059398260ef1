"""Cross-encoders of known shapes with random weights, as a hub would hand them over: speed and memory do not depend on the weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")


def _minilm_l6() -> Any:
    from transformers import BertConfig

    return BertConfig(
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        max_position_embeddings=512,
        num_labels=1,
    )


def _bge_reranker_base() -> Any:
    from transformers import XLMRobertaConfig

    return XLMRobertaConfig(vocab_size=250_002, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5, num_labels=1)


SHAPES: Mapping[str, Callable[[], Any]] = {"minilm-l6": _minilm_l6, "bge-reranker-base": _bge_reranker_base}


def make_source(home: Path, shape: str = "minilm-l6") -> Path:
    """Write a shape into a new folder `source` of home, with the built-in model's tokenizer."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from model_store_scripts.sources import find_source

    folder = home / "source"
    folder.mkdir(parents=True)
    builtin = find_source("builtin", None).folder
    for name in _FILES:
        shutil.copy(builtin / name, folder)
    config = SHAPES[shape]()
    if config.type_vocab_size == 1:  # where a pair's texts have no types
        told = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        told |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
        (folder / "tokenizer_config.json").write_text(json.dumps(told), encoding="utf-8")
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder
