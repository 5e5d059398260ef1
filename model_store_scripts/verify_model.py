"""Check a saved model: every file's hash, then the golden set: `python -m model_store_scripts.verify_model TAG`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bento_service.errors import ModelError, RerankerError
from bento_service.model_info import ModelInfo, check_files
from bento_service.scorer.device import choose_device, choose_precision
from bento_service.scorer.engine import ScoringEngine
from bento_service.scorer.loading import check_golden
from bento_service.scorer.weights import load_encoder
from model_store_scripts.entries import find_entry


def verify_model(tag: str) -> str:
    """Check a model and return a line that says so; raises ModelError."""
    stored = find_entry(tag)
    if stored is None:
        raise ModelError(f"the store has no model {tag}: `make models` lists what is there")
    folder = Path(stored.path)
    info = ModelInfo.from_metadata(stored.info.metadata, str(stored.tag))
    check_files(folder, info, str(stored.tag))
    device = choose_device("auto", 0)
    precision = choose_precision(info.quantization, info.quantization, device)
    engine = ScoringEngine(load_encoder(folder, info, precision=precision, device=device), device=device)
    worst = check_golden(engine, folder, info, precision)
    return (
        f"{stored.tag} is whole: {len(info.files_sha256)} files as saved, "
        f"{len(info.golden)} golden scores within {worst:.2g} in {precision.effective} on {device}"
    )


def main() -> int:
    """Run the command; errors are one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tag")
    try:
        print(verify_model(parser.parse_args().tag))
    except RerankerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
