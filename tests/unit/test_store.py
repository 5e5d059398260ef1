"""The store: which entry RERANKER_MODEL and QUANTIZATION mean, and which one a Bento is pinned to."""

from __future__ import annotations

from pathlib import Path

import pytest

from bento_service.errors import ModelError
from bento_service.model_info import ModelInfo
from bento_service.settings import Quantization, Settings
from bento_service.store import command_that_saves, packed_tag, preferred, variant_name, variants, wanted_tag


def _info(quantization: Quantization, drift: float | None = 0.0, order: float | None = 1.0) -> ModelInfo:
    return ModelInfo.model_construct(quantization=quantization, drift=drift, order=order)


@pytest.mark.parametrize(
    ("saved", "precisions", "served"),
    [
        ([_info("none"), _info("bf16"), _info("int8")], ["int8", "bf16", "none"], "int8"),
        ([_info("none"), _info("bf16"), _info("int8", 0.06)], ["int8", "bf16", "none"], "bf16"),
        ([_info("none"), _info("bf16"), _info("int8", 0.0, 0.7)], ["int8", "bf16", "none"], "bf16"),
        ([_info("none"), _info("int8", None, None)], ["int8", "bf16", "none"], "none"),
        ([_info("none"), _info("int8")], ["none"], "none"),
        ([_info("none"), _info("nf4")], ["int8", "bf16"], "none"),
        ([_info("nf4", 0.07), _info("bf16", 0.03)], ["int8", "bf16"], "bf16"),
        ([_info("int8", 0.09), _info("bf16", 0.03)], ["int8", "bf16"], "bf16"),
        ([_info("int8", None), _info("nf4", 0.1)], ["int8", "bf16"], "nf4"),
        ([_info("nf4", 0.1)], ["bf16"], "nf4"),
    ],
)
def test_the_fastest_variant_within_its_bound_is_preferred(
    saved: list[ModelInfo], precisions: list[Quantization], served: str
) -> None:
    """Where there is none, the most faithful; nf4 is never fast, and what was not measured is not trusted."""
    assert preferred([(info.quantization, info) for info in saved], precisions)[0] == served


def _settings(model: str, quantization: str = "none", *, mixed: bool = False) -> Settings:
    return Settings.model_validate({"RERANKER_MODEL": model, "QUANTIZATION": quantization, "ENABLE_MIXED_PRECISION": mixed})


@pytest.mark.parametrize(
    ("name", "quantization", "variant"),
    [
        ("m", "none", "m"),
        ("m", "bf16", "m-bf16"),
        ("m-bf16", "bf16", "m-bf16"),
        ("m-bf16", "none", "m-bf16"),
        ("m-bf16", "fp16", "m-bf16-fp16"),
    ],
)
def test_a_variant_is_named_after_its_precision_once(name: str, quantization: Quantization, variant: str) -> None:
    """A name that says so already stays as it is."""
    assert variant_name(name, quantization) == variant


@pytest.mark.parametrize(
    ("model", "quantization", "tag"),
    [
        ("m", "none", "m"),
        ("m:v1", "none", "m:v1"),
        ("m", "bf16", "m-bf16"),
        ("m:v1", "fp16", "m-fp16:v1"),
        ("m", "int8", "m-int8"),
        ("m:v1", "nf4", "m-nf4:v1"),
        ("m:v1", "auto", "m:v1"),
    ],
)
def test_the_variant_asked_for_keeps_the_version(model: str, quantization: str, tag: str) -> None:
    """All variants of a model share its versions; auto looks for all of them."""
    assert wanted_tag(_settings(model, quantization)) == tag


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("m", ["m", "m-fp16", "m-bf16", "m-int8", "m-nf4"]),
        ("m:v1", ["m:v1", "m-fp16:v1", "m-bf16:v1", "m-int8:v1", "m-nf4:v1"]),
        ("m-int8", ["m-int8", "m-int8-fp16", "m-int8-bf16", "m-int8-nf4"]),
    ],
)
def test_every_variant_has_its_name(model: str, names: list[str]) -> None:
    """Auto looks for all of them, each once."""
    assert variants(model) == names


def test_mixed_precision_asks_for_the_bf16_variant() -> None:
    """ENABLE_MIXED_PRECISION and QUANTIZATION=bf16 are one wish."""
    assert wanted_tag(_settings("m:v1", mixed=True)) == "m-bf16:v1"


@pytest.mark.parametrize(
    ("model", "quantization", "source", "command"),
    [
        ("all-minilm-l6-v2", "none", None, "make model MODEL=builtin QUANTIZATION=none NAME=all-minilm-l6-v2"),
        ("all-minilm-l6-v2:v1", "bf16", None, "make model MODEL=builtin QUANTIZATION=bf16 NAME=all-minilm-l6-v2"),
        ("mine", "fp16", "org/mine", "make model MODEL=org/mine QUANTIZATION=fp16 NAME=mine"),
        ("mine", "auto", None, "make model MODEL=<hub id or folder> NAME=mine"),
    ],
)
def test_the_command_that_saves_the_entry_can_be_pasted(model: str, quantization: str, source: str | None, command: str) -> None:
    """It names source, precision and the name that is looked for."""
    assert command_that_saves(_settings(model, quantization), source) == command


def test_the_saving_command_makes_the_entry_that_is_wanted() -> None:
    """What NAME and QUANTIZATION of the command give is the tag that was missing."""
    settings = _settings("mine", "bf16")
    name = command_that_saves(settings, None).rpartition("NAME=")[2]
    assert variant_name(name, "bf16") == wanted_tag(settings)


def _bento(folder: Path, manifest: str) -> Path:
    project = folder / "src"
    project.mkdir()
    (folder / "bento.yaml").write_text(manifest, encoding="utf-8")
    return project


def test_a_bento_serves_the_model_packed_into_it(tmp_path: Path) -> None:
    """Its full tag, version included."""
    manifest = "services:\n- name: Reranker\n  models:\n  - tag: m:0123\n- name: Scorer\n  models:\n  - tag: m:0123\n"
    assert packed_tag(_bento(tmp_path, manifest)) == "m:0123"


def test_a_working_tree_packs_nothing(tmp_path: Path) -> None:
    """Neither a folder of another name nor one without a manifest beside it is a Bento's."""
    project = _bento(tmp_path, "services: []\n")
    elsewhere = tmp_path / "main"
    elsewhere.mkdir()
    assert packed_tag(elsewhere) is None
    (tmp_path / "bento.yaml").unlink()
    assert packed_tag(project) is None


@pytest.mark.parametrize("manifest", ["tag: reranker:1\n", "tag: reranker:1\nservices:\n- name: Reranker\n"])
def test_a_bento_without_a_model_says_how_to_mend_it(tmp_path: Path, manifest: str) -> None:
    """Rather than falling back to whatever the store holds."""
    with pytest.raises(ModelError, match=r"reranker:1 has no model.*make build"):
        packed_tag(_bento(tmp_path, manifest))
