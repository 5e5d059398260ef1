"""What `make test-deploy` needs besides Python."""

from __future__ import annotations

import shutil

import pytest

_TOOLS = {
    ("kubectl", "kustomize"): "kubectl 1.27 or newer, or kustomize 5 (https://kubernetes.io/docs/tasks/tools)",
    ("haproxy",): "haproxy 2.4 or newer (Debian: apt-get install haproxy)",
}


def pytest_sessionstart() -> None:
    """End the run with one line where a tool is missing."""
    for programs, advice in _TOOLS.items():
        if not any(shutil.which(program) for program in programs):
            pytest.exit(f"error: make test-deploy needs {advice}", returncode=1)
