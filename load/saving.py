"""Saves a model into a store of a run's own, in a process of its own, since the store's place is read once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


class NotSaved(Exception):
    """Why a model could not be saved, in one line."""


def save(home: Path, precision: str = "auto", *, model: str = "builtin", more: Sequence[str] = ()) -> str:
    """Save a model in a precision into the store below `home`; its tag. Raises NotSaved."""
    command = [sys.executable, "-m", "model_store_scripts.save_model", "--model", model, "--quantization", precision, *more]
    environment = os.environ | {"BENTOML_HOME": str(home)}
    ran = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise NotSaved(ran.stderr.strip().splitlines()[-1].removeprefix("error: "))
    return ran.stdout.strip().splitlines()[-1]
