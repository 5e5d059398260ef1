"""Cores that measured servers take, and others."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cores import Meter

SPINS = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"


def spun() -> tuple[tuple[float, float], tuple[float, float]]:
    """Let another process take 0.3 s of CPU: the cores of the measured and of others where it is measured, and where it is not, in the same time."""
    with subprocess.Popen([sys.executable, "-c", SPINS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        counting, ignoring = Meter([process.pid]), Meter([])
        assert process.stdout is not None
        process.stdout.readline()
        return counting.read(), ignoring.read()


def test_a_measured_server_is_told_from_other_programs() -> None:
    """What it takes counts as its own, and else as others'."""
    (measured, others), (none, more_others) = spun()
    assert measured > 0.02
    assert none == 0
    # Whatever else runs is among both.
    assert more_others - others == pytest.approx(measured, rel=0.3, abs=0.05)
