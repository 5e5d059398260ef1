"""What stops the start: one clear line and a non-zero exit code, never a loop."""

from __future__ import annotations

import os
import resource
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from servers import Server


@pytest.fixture
def home(builtin_tag: str, tmp_path: Path) -> Iterator[Path]:
    """Copy the built-in model in full precision, so that a test may damage it."""
    name = builtin_tag.partition(":")[0]
    copy = tmp_path / "home"
    shutil.copytree(Path(os.environ["BENTOML_HOME"], "models", name), copy / "models" / name)
    yield copy
    shutil.rmtree(copy)


def failure(home: Path, options: tuple[str, ...] = (), **settings: object) -> str:
    """Start a server that must not come up; the one line that says why."""
    server = Server(home, options=options, **settings)
    try:
        assert server.wait_exit(90) != 0
        lines = [line for line in server.log.splitlines() if "serve` failed" in line or "cannot be served" in line]
        assert len(lines) == 1, server.log
        assert "Traceback" not in server.log
        return lines[0]
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"RERANKER_WORKERS": "0"}, "RERANKER_WORKERS: Input should be greater than or equal to 1"),
        ({"RERANKER_WORKER": "2"}, "did you mean RERANKER_WORKERS?"),
        ({"ENABLE_TORCH_COMPILE": "true"}, "ENABLE_TORCH_COMPILE has no effect here, because compiled forward"),
        ({"MICRO_BATCH_WINDOW_MS": "10"}, "MICRO_BATCH_WINDOW_MS has no effect here"),
        (
            {"QUANTIZATION": "int8"},
            "save it with `make model MODEL=sentence-transformers/all-MiniLM-L6-v2 QUANTIZATION=int8 NAME=all-minilm-l6-v2`",
        ),
        ({"QUANTIZATION": "int8", "ENABLE_MIXED_PRECISION": "true"}, "ENABLE_MIXED_PRECISION=true means QUANTIZATION=bf16"),
        ({"QUANTIZATION": "fp16"}, "QUANTIZATION=fp16 NAME=all-minilm-l6-v2`"),
        ({"RERANKER_MODEL": "absent:1"}, "model absent:1 is not in the Bento model store: save it with `make model"),
        ({"RERANKER_API_KEYS_FILE": "/absent"}, "RERANKER_API_KEYS_FILE: the file cannot be read as text"),
        ({"RERANKER_MAX_LENGTH": "300"}, "RERANKER_MAX_LENGTH=300 is over the model's window of 256 tokens"),
        ({"RERANKER_DEVICE": "cuda", "CUDA_VISIBLE_DEVICES": ""}, "torch sees no CUDA device"),
    ],
)
def test_a_wrong_setting_stops_the_start(home: Path, settings: dict[str, str], expected: str) -> None:
    """Each names the variable and says what to do."""
    assert expected in failure(home, **settings)


def test_damaged_weights_stop_the_start(home: Path) -> None:
    """One flipped byte, found by its hash before any worker starts."""
    [weights] = home.glob("models/all-minilm-l6-v2/*/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    assert "is damaged in model.safetensors" in failure(home)


def test_a_golden_score_that_differs_stops_the_start(home: Path) -> None:
    """Found in the Scorer, which then ends the server instead of being started again for ever."""
    [manifest] = home.glob("models/all-minilm-l6-v2/*/model.yaml")
    model = yaml.safe_load(manifest.read_text())
    model["metadata"]["golden"][0]["score"] -= 0.01
    manifest.write_text(yaml.safe_dump(model))
    assert "does not give the scores it gave when it was saved" in failure(home)


def test_a_half_written_entry_stops_the_start(home: Path) -> None:
    """A save that was cut off leaves no start in doubt."""
    [manifest] = home.glob("models/all-minilm-l6-v2/*/model.yaml")
    manifest.unlink()
    assert "half-written" in failure(home)


def test_a_taken_port_stops_the_start(home: Path) -> None:
    """Before any worker starts; who listens there is left alone."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = failure(home, ("--port", str(port)))
        assert f"port {port} is taken: stop the program that listens there, or choose another port with --port" in line


def test_a_full_disk_stops_the_start(home: Path) -> None:
    """Workers would die by SIGBUS over their metrics, and be started again for ever; a limit on files stands for the disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * 1024, before[1]))
    try:
        assert "the disk is full: no room for 4 MB of metrics under BENTOML_HOME; make some, or move BENTOML_HOME" in failure(
            home
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
