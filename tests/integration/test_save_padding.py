"""An architecture whose classifier looks at the last token is refused: behind a shorter text that is padding."""

from __future__ import annotations

from pathlib import Path

import bentoml
import pytest
import torch
import transformers

from bento_service.errors import ModelError
from model_store_scripts.save_model import save_model
from small_models import bert_tokenizer, make_cross_encoder


def test_a_classifier_that_does_not_bear_padding_is_refused(tmp_path: Path) -> None:
    """XLNet's last token is its summary."""
    tokenizer = bert_tokenizer()
    config = transformers.XLNetConfig(
        vocab_size=len(tokenizer), d_model=32, n_layer=2, n_head=4, d_inner=64, num_labels=1, pad_token_id=0
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        transformers.XLNetForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"logits move by 0\.\d+ when texts of unlike lengths share a batch"):
        save_model(str(tmp_path), name="refused-xlnet")
    assert not [model for model in bentoml.models.list() if model.tag.name == "refused-xlnet"]


@pytest.mark.parametrize("architecture", ["deberta-v2", "modernbert"])
def test_classifiers_that_bear_padding_are_saved(tmp_path: Path, architecture: str) -> None:
    """They are those that run padded."""
    assert save_model(str(make_cross_encoder(tmp_path / architecture, architecture)), name=f"padded-{architecture}")
