"""The Bento: code and model packed, the model pinned, served from its own requirements."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import bentoml
import pytest
from bentoml._internal.container import construct_containerfile

from cache_calls import serving
from model_store_scripts.save_model import save_model
from servers import REPOSITORY, Server

QUESTION = {"query": "capital of France", "documents": ["Rome", "Paris is the capital of France", "bread"]}


@pytest.fixture(scope="module")
def bento(builtin_tag: str) -> Iterator[str]:
    """Build a Bento of the built-in model."""
    assert builtin_tag
    program = Path(sys.executable).parent / "bentoml"
    # Another precision may be saved beside it by then.
    built = subprocess.run(
        [program, "build", "--output", "tag"],
        cwd=REPOSITORY,
        env=os.environ | {"QUANTIZATION": "none"},
        check=True,
        capture_output=True,
        text=True,
    )
    tag = built.stdout.strip().splitlines()[-1].removeprefix("__tag__:")
    yield tag
    bentoml.bentos.delete(tag)


def test_a_bento_serves_the_model_packed_into_it(bento: str, builtin_tag: str) -> None:
    """Also after a newer version was saved under the same name, and with another number of Scorers than it was built with."""
    home = Path(os.environ["BENTOML_HOME"])
    newer = save_model("builtin", max_length=128)
    try:
        assert newer.split(":")[0] == builtin_tag.split(":", maxsplit=1)[0]
        packed = Server(home, bento=bento, RERANKER_SCORER_WORKERS=2, RERANKER_TORCH_THREADS=1)
        with serving(packed, Server(home)) as [server, repository]:
            assert repository.get("/health").json()["model"]["tag"] == newer
            model = server.get("/health").json()["model"]
            assert model["tag"] == builtin_tag
            assert model["max_length"] == 256
            assert server.post(**QUESTION).json()["results"][0]["index"] == 1
            assert "<h1>Reranker</h1>" in server.get("/").text
    finally:
        bentoml.models.delete(newer)


def test_the_container_s_user_is_not_root(bento: str) -> None:
    """In the Dockerfile that `bentoml containerize` hands to the container engine."""
    with construct_containerfile(bentoml.bentos.get(bento), enable_buildkit=False) as (folder, name):
        lines = Path(folder, name).read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users[-1] == "bentoml"
    assert [line for line in lines if line.startswith(("USER", "ENTRYPOINT"))][-2:] == [
        "USER bentoml",
        'ENTRYPOINT [ "/home/bentoml/bento/env/docker/entrypoint.sh" ]',
    ]


def test_the_image_gets_no_compiler_and_no_cuda(bento: str) -> None:
    """Nothing is installed from Debian, and torch's CPU build is looked for before PyPI's."""
    with construct_containerfile(bentoml.bentos.get(bento), enable_buildkit=False) as (folder, name):
        text = Path(folder, name).read_text()
    assert "FROM docker.io/library/python:3.11-slim " in text
    assert "apt-get" not in text
    assert "ARG UV_FIND_LINKS=https://download.pytorch.org/whl/cpu/torch/\n" in text
    assert text.index("uv --directory") < text.index("chmod +x ./env/docker/script__")


def test_a_bento_runs_from_its_own_requirements(bento: str, tmp_path: Path) -> None:
    """In an environment that holds them alone it answers as the repository does."""
    home = Path(os.environ["BENTOML_HOME"])
    packed = Path(bentoml.bentos.get(bento).path, "env", "python", "requirements.txt").read_text()
    # BentoML adds the version of itself that built it.
    assert packed.split() == [*(REPOSITORY / "requirements.txt").read_text().split(), f"bentoml=={version('bentoml')}"]
    python = REPOSITORY / ".venv-bento" / "bin" / "python"
    assert (REPOSITORY / ".venv-bento" / ".made").exists(), (
        "the environment .venv-bento is missing or half made: `make setup-bento` makes it"
    )
    with serving(Server(home), Server(home, bento=bento, cwd=tmp_path, python=str(python))) as servers:
        expected, answer = (server.post(**QUESTION).json() for server in servers)
    assert answer["model"] == expected["model"]
    assert [item["index"] for item in answer["results"]] == [item["index"] for item in expected["results"]]
    for got, wanted in zip(answer["results"], expected["results"], strict=True):
        assert got["relevance_score"] == pytest.approx(wanted["relevance_score"], abs=1e-6)
