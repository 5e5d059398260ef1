"""Models that cannot be run or served are refused in one line, and what was saved before is found without the hub."""

from __future__ import annotations

from pathlib import Path

import bentoml
import pytest
import torch
from safetensors.torch import load_file, save_file

from bento_service.errors import ModelError
from model_store_scripts import list_models
from model_store_scripts.save_model import save_model
from small_models import make_cross_encoder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a small BERT cross-encoder to damage."""
    return make_cross_encoder(tmp_path / "small", "bert")


def damage(folder: Path, how: str) -> None:
    """Damage the weights or what belongs to them."""
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    if how == "cut off":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif how == "empty":
        weights.write_bytes(b"")
    elif how == "not numbers":
        save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items()}, weights, {"format": "pt"})
    elif how == "another head":
        save_file(tensors | {"classifier.weight": torch.zeros(1, 7)}, weights, {"format": "pt"})
    elif how == "fewer embeddings":
        name = "bert.embeddings.word_embeddings.weight"
        config = (folder / "config.json").read_text()
        rows = tensors[name].shape[0]
        (folder / "config.json").write_text(config.replace(f'"vocab_size": {rows}', '"vocab_size": 20'))
        save_file(tensors | {name: tensors[name][:20].clone()}, weights, {"format": "pt"})


@pytest.mark.parametrize("how", ["cut off", "empty", "not numbers", "another head", "fewer embeddings"])
def test_damaged_weights_are_refused(folder: Path, how: str) -> None:
    """With a reason and without an entry."""
    damage(folder, how)
    with pytest.raises(ModelError, match=r"cannot be run|not finite|belong together|lack"):
        save_model(str(folder), name="damaged")
    assert [model for model in bentoml.models.list() if model.tag.name == "damaged"] == []


def test_what_was_saved_from_the_hub_is_served_without_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A restart must not need the hub; an id that was never saved still is an error."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    tag = save_model(str(folder), name="hubbed")
    stored = bentoml.models.get(tag)
    manifest = Path(stored.path, "model.yaml")
    manifest.write_text(manifest.read_text().replace(f"source: {folder.name}", "source: someone/hubbed"))
    try:
        assert save_model("someone/hubbed") == tag
        assert "was saved from it before" in capsys.readouterr().err
        with pytest.raises(ModelError, match="could not be reached"):
            save_model("someone/else")
    finally:
        bentoml.models.delete(tag)


def test_the_list_survives_a_half_written_entry(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It names the entry and goes on."""
    tag = save_model(str(folder), name="half")
    manifest = Path(bentoml.models.get(tag).path, "model.yaml")
    whole = manifest.read_text()
    manifest.unlink()
    try:
        list_models.main()
        assert f"{tag}  half-written" in capsys.readouterr().out
    finally:
        manifest.write_text(whole)
        bentoml.models.delete(tag)
