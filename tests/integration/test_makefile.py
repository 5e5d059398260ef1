"""The Makefile's own logic: what is saved, what is served, what stops."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from servers import REPOSITORY


def make(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run make in this environment, which is there already."""
    outer = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}  # of the make that runs the tests
    environment = {name: value for name, value in os.environ.items() if name not in outer} | {"BENTOML_HOME": str(home)}
    command = ["make", "-o", "setup", f"VENV={Path(sys.executable).parent.parent}", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_save_that_fails_serves_nothing(builtin_tag: str) -> None:
    """Above all not the built-in model instead."""
    assert builtin_tag
    ran = make("serve", "MODEL=./nope", home=Path(os.environ["BENTOML_HOME"]))
    assert ran.returncode != 0
    assert "error: ./nope is neither a folder nor a hub id" in ran.stderr
    assert "Starting production" not in ran.stdout + ran.stderr


def test_make_model_prints_the_tag_last(builtin_tag: str, tmp_path: Path) -> None:
    """For scripts to read; its variables reach save_model."""
    assert builtin_tag
    ran = make("model", "MODEL=builtin", "QUANTIZATION=bf16", "NAME=mine", "MAX_LENGTH=64", home=tmp_path)
    assert ran.returncode == 0, ran.stderr
    name, version = ran.stdout.splitlines()[-1].split(":")
    assert name == "mine-bf16"
    assert (tmp_path / "models" / name / version / "model.safetensors").is_file()
    assert "64 tokens" in make("models", home=tmp_path).stdout


def test_make_model_without_a_model_says_what_to_say(tmp_path: Path) -> None:
    """One line."""
    ran = make("model", home=tmp_path)
    assert ran.returncode != 0
    assert "error: say which: make model MODEL=" in ran.stderr


def test_make_test_browser_without_a_browser_says_what_to_install(tmp_path: Path) -> None:
    """One line."""
    ran = make("test-browser", "CHROMIUM=no-such-browser", home=tmp_path)
    assert ran.returncode != 0
    assert "error: no no-such-browser here: apt-get install chromium" in ran.stderr


def test_without_prometheus_the_make_target_says_what_to_install(tmp_path: Path) -> None:
    """It ends before anything is installed or run."""
    for missing in ("PROMETHEUS", "PROMTOOL"):
        ran = make("test-rules", "PROMETHEUS=true", "PROMTOOL=true", f"{missing}=no-such-program", home=tmp_path)
        assert ran.returncode != 0
        assert "error: no no-such-program here: apt-get install prometheus" in ran.stderr
