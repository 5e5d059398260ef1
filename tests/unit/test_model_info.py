"""Model metadata: read back whole, a fingerprint of what decides on scores, and damage that is noticed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bento_service.errors import ModelError
from bento_service.model_info import GoldenPair, ModelInfo, check_files, sha256_of

RUN: dict[str, Any] = {"dtype": "none", "device": "cpu", "max_length": 256}


def _info(**changes: Any) -> ModelInfo:
    fields: dict[str, Any] = {
        "source": "org/m",
        "revision": "abc",
        "licence": None,
        "kind": "bi-encoder",
        "architecture": "BertModel",
        "quantization": "none",
        "dtype": "float32",
        "max_length": 256,
        "activation": "cosine",
        "uses_token_types": True,
        "pooling": "mean",
        "source_sha256": {},
        "files_sha256": {"model.safetensors": "aa", "tokenizer.json": "bb"},
        "library_versions": {"torch": "2"},
        "golden": [GoldenPair(query="q", document="d", score=0.5)],
    }
    return ModelInfo(**(fields | changes))


def test_metadata_comes_back_from_the_store_as_it_was_saved() -> None:
    """Through plain YAML types."""
    assert ModelInfo.from_metadata(_info().model_dump(), "m:1") == _info()


@pytest.mark.parametrize(
    "metadata", [{}, {"source": "x"}, {**_info().model_dump(), "kind": "llm"}, {**_info().model_dump(), "later_field": 1}]
)
def test_foreign_metadata_names_the_model_and_the_way_out(metadata: dict[str, Any]) -> None:
    """An entry that another program, or another version, wrote is not guessed at."""
    with pytest.raises(ModelError, match=r"model m:1 was not saved by this version.*make model"):
        ModelInfo.from_metadata(metadata, "m:1")


def test_what_is_known_of_a_model_cannot_be_changed() -> None:
    """All rooms read the same."""
    with pytest.raises(ValidationError):
        _info().max_length = 512  # type: ignore[misc]


def test_a_fingerprint_is_stable() -> None:
    """64 hex digits, the same for the same run whatever the order of files."""
    turned = _info(files_sha256={"tokenizer.json": "bb", "model.safetensors": "aa"})
    assert _info().fingerprint(**RUN) == turned.fingerprint(**RUN)
    assert len(bytes.fromhex(_info().fingerprint(**RUN))) == 32


@pytest.mark.parametrize(
    "changes",
    [
        {"files_sha256": {"model.safetensors": "ab", "tokenizer.json": "bb"}},
        {"files_sha256": {"model.safetensors": "aa", "tokenizer.json": "bc"}},
        {"kind": "cross-encoder"},
        {"pooling": "cls"},
        {"query_prompt": "query: "},
        {"document_prompt": "query: "},
    ],
)
def test_another_model_has_another_fingerprint(changes: dict[str, Any]) -> None:
    """Whatever changes a score changes it."""
    assert _info(**changes).fingerprint(**RUN) != _info().fingerprint(**RUN)


@pytest.mark.parametrize("changes", [{"dtype": "bf16"}, {"device": "cuda"}, {"max_length": 128}])
def test_another_run_has_another_fingerprint(changes: dict[str, Any]) -> None:
    """What really runs counts, not what was asked for."""
    assert _info().fingerprint(**(RUN | changes)) != _info().fingerprint(**RUN)


def test_prompts_are_not_run_together() -> None:
    """A word that moves from one prompt to the other is another model."""
    one = _info(query_prompt="ab", document_prompt="c")
    other = _info(query_prompt="a", document_prompt="bc")
    assert one.fingerprint(**RUN) != other.fingerprint(**RUN)


@pytest.mark.parametrize("changes", [{"source": "other/m"}, {"licence": "mit"}, {"library_versions": {}}, {"golden": []}])
def test_what_does_not_change_scores_does_not_change_the_fingerprint(changes: dict[str, Any]) -> None:
    """A cache stays warm over a rename."""
    assert _info(**changes).fingerprint(**RUN) == _info().fingerprint(**RUN)


def test_a_file_is_hashed_whole(tmp_path: Path) -> None:
    """Beyond any buffer's size."""
    content = b"weights" * 100_000
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def _stored(folder: Path) -> ModelInfo:
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).write_bytes(name.encode() * 1000)
    return _info(files_sha256={path.name: sha256_of(path) for path in folder.iterdir()})


def test_a_whole_model_passes_and_may_have_company(tmp_path: Path) -> None:
    """BentoML keeps a file of its own beside ours."""
    info = _stored(tmp_path)
    (tmp_path / "model.yaml").touch()
    check_files(tmp_path, info, "m:1")


def test_one_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """The line names the file and the commands that help."""
    info = _stored(tmp_path)
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[4321] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"m:1 is damaged in model\.safetensors.*bentoml models delete m:1"):
        check_files(tmp_path, info, "m:1")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A folder in its place is no file either."""
    info = _stored(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(ModelError, match=r"m:1 lacks its file tokenizer\.json"):
        check_files(tmp_path, info, "m:1")
