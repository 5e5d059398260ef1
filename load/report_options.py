"""The arguments that the reports by precision share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from bento_service.settings import Quantization

REPORTS = Path(__file__).resolve().parent / "reports"


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """Add --precisions and --reports."""
    precisions = get_args(Quantization)
    parser.add_argument("--precisions", nargs="+", choices=precisions, default=precisions, help="default: all that run here")
    parser.add_argument("--reports", type=Path, default=REPORTS, help="folder that the report goes to")
