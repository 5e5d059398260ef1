"""Cores that measured servers take, and others."""

from __future__ import annotations

import subprocess
import sys

from cores import Meter

SPINS = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"


def spun(*, counted: bool) -> tuple[float, float]:
    """Let another process take 0.3 s of CPU, as a measured one or not."""
    with subprocess.Popen([sys.executable, "-c", SPINS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        meter = Meter([process.pid] if counted else [])
        assert process.stdout is not None
        process.stdout.readline()
        return meter.read()


def test_a_measured_server_is_told_from_other_programs() -> None:
    """What it takes counts as its own, and else as others'."""
    measured, _ = spun(counted=True)
    assert measured > 0.02
    measured, others = spun(counted=False)
    assert measured == 0
    assert others > 0.02
