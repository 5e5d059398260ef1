"""Where figures come from: command, commit, day, machine and versions, for the head of a report."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def provenance(command: str) -> dict[str, Any]:
    """Describe this moment. dirty: whether tracked or new files differ from the commit, the reports aside."""
    return {
        "command": command,
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", ".", ":!load/reports")),
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load_average_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }


def versions(python: Path, libraries: Iterable[str]) -> dict[str, str]:
    """Ask an environment which of these libraries it has."""
    code = (
        "import importlib.metadata as m, json, sys; have = {d.name.lower().replace('_', '-'): d.version for d in m.distributions()}; "
        "print(json.dumps({name: have[name] for name in sys.argv[1:] if name in have}))"
    )
    ran = subprocess.run([str(python), "-c", code, *libraries], check=True, capture_output=True, text=True)
    found: dict[str, str] = json.loads(ran.stdout)
    return found


def sentence(told: dict[str, Any]) -> str:
    """Say it in a line of markdown."""
    tree = ", with changes that are not in it," if told["dirty"] else ""
    return (
        f"Command: `{told['command']}` at commit {told['commit'][:7] or 'unknown'}{tree} on {told['date']}; {told['cores']} cores of {told['cpu']}, "
        f"Python {told['python']}, load average before the run {told['load_average_before']}."
    )


def _git(*arguments: str) -> str:
    ran = subprocess.run([shutil.which("git") or "git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return ran.stdout.strip()


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    facts = dict(reversed([(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]))
    flags = [flag for flag in _FLAGS if flag in facts.get("flags", "").split()]
    name = facts.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({', '.join(flags)})" if flags else name
