"""The arguments that the reports by precision share, and how a run is spelt in them."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import get_args

from bento_service.settings import Quantization

REPORTS = Path(__file__).resolve().parent / "reports"


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """Add --precisions and --reports."""
    precisions = get_args(Quantization)
    parser.add_argument("--precisions", nargs="+", choices=precisions, default=precisions, help="default: all that run here")
    parser.add_argument("--reports", type=Path, default=REPORTS, help="folder that the report goes to")


def command_line(target: str, said: list[str]) -> str:
    """Spell the make command that repeats a run; where its report goes is nobody's business."""
    kept = list(said)
    if "--reports" in kept:
        place = kept.index("--reports")
        del kept[place : place + 2]
    return f"make {target}" + (f' BENCH_ARGS="{shlex.join(kept)}"' if kept else "")
