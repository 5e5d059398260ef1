"""What all tests share: a Bento model store of their own with the built-in model in it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports bentoml, which reads its home once.
_HOME = Path(tempfile.mkdtemp(prefix="reranker-tests-"))
os.environ["BENTOML_HOME"] = str(_HOME)
os.environ["BENTOML_DO_NOT_TRACK"] = "True"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
_SETTINGS = ("RERANKER_", "MICRO_BATCH_", "ENABLE_", "CACHE_", "CLEAR_CACHE_", "REDIS_", "QUANTIZATION")
for _name in [name for name in os.environ if name.startswith(_SETTINGS) and name != "REDIS_SERVER"]:
    del os.environ[_name]  # a developer's own settings must not change what is tested


def pytest_unconfigure() -> None:
    """Remove the tests' BENTOML_HOME at the end, which a process that only hands out tests has, too."""
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Run a module's small products on one thread, where they are fastest."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def builtin_tag() -> str:
    """Save the built-in model in fp32, once."""
    from model_store_scripts.save_model import save_model

    return save_model("builtin")


@pytest.fixture(scope="session")
def builtin_folder(builtin_tag: str) -> Path:
    """Return where the built-in model lies in the store."""
    import bentoml

    return Path(bentoml.models.get(builtin_tag).path)
