"""`make test-systemd`: systemd itself reads deploy/systemd, and rates how much a broken service could reach."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from servers import REPOSITORY

UNITS = sorted((REPOSITORY / "deploy" / "systemd").glob("*.*"))
_OK = 2  # of 10: systemd calls up to 2 OK, and above 7 unsafe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The units, with the paths of this environment instead of /opt/reranker, since systemd looks whether a program is there."""
    for unit in UNITS:
        text = unit.read_text().replace("/opt/reranker/.venv/bin", str(Path(sys.executable).parent))
        tmp_path.joinpath(unit.name).write_text(text.replace("/opt/reranker", str(REPOSITORY)))
    drop_in = tmp_path / "reranker.service.d"
    drop_in.mkdir()
    tmp_path.joinpath("gpu.conf").rename(drop_in / "gpu.conf")
    return tmp_path


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze."""
    command = ["systemd-analyze", "--no-pager", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_systemd_understands_the_units(folder: Path) -> None:
    """No unknown option, no missing program, no word of complaint."""
    units = [str(path) for path in (*folder.glob("*.service"), *folder.glob("*.timer"))]
    ran = analyze("--man=no", "verify", *units)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert len(units) == 3


def test_the_service_can_reach_little(folder: Path) -> None:
    """By systemd's own measure, from 0 (safe) to 10; without the GPU's exceptions."""
    folder.joinpath("reranker.service.d", "gpu.conf").unlink()
    ran = analyze("security", "--offline=true", f"--threshold={10 * _OK}", str(folder / "reranker.service"))
    assert ran.returncode == 0, ran.stdout
    assert "Overall exposure level" in ran.stdout
