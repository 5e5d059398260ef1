"""What sharing a query's prefix brings a yes/no model: pairs scored whole and behind a shared prefix, alternating, random weights.

python load/bench_prefixes.py --layers 6 --hidden 512 --dtype float32
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bento_service.pairs import TokenPair
from bento_service.scorer.engine import ScoringEngine
from bento_service.scorer.prefixes import Prefixes
from bento_service.scorer.yes_no import YesNo

_PREFIX, _SHORTEST, _LONGEST, _VOCABULARY = 100, 80, 120, 5000
_CPU = torch.device("cpu")


def make_model(layers: int, hidden: int, dtype: torch.dtype) -> Any:
    """Make a Qwen3 of some size."""
    heads = hidden // 64
    shape = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": 3 * hidden, "head_dim": 64}
    config = transformers.Qwen3Config(
        vocab_size=_VOCABULARY, num_attention_heads=heads, num_key_value_heads=max(1, heads // 2), **shape
    )
    return transformers.Qwen3Model(config).to(dtype).eval()


def make_batch(drawn: np.random.Generator, queries: int, pairs: int) -> list[TokenPair]:
    """Draw pairs of some queries."""

    def ids(count: int) -> np.ndarray:
        return drawn.integers(1, _VOCABULARY, count).astype(np.uint32)

    prefixes = [ids(_PREFIX) for _ in range(queries)]
    lengths = drawn.integers(_SHORTEST, _LONGEST, (queries, pairs)).tolist()
    return [
        TokenPair(np.append(prefix, ids(length)), None, _PREFIX, np.inf, 0)
        for prefix, own in zip(prefixes, lengths, strict=True)
        for length in own
    ]


def seconds(model: Any, batch: list[TokenPair], *, share: bool, calls: int) -> float:
    """Score a batch in so many calls with nothing remembered from before."""
    # Where one call has it all, a prefix is shared even for a lone pair, to see what that costs.
    prefixes = Prefixes(max_tokens=4096, pass_tokens=-1 if calls == 1 else 0) if share else None
    head = torch.ones(model.config.hidden_size)
    engine = ScoringEngine(YesNo(model, head, device=_CPU, prefixes=prefixes), device=_CPU)
    size = len(batch) // calls
    begun = time.perf_counter()
    for start in range(0, len(batch), size):
        engine.raw_scores(batch[start : start + size])
    return time.perf_counter() - begun


def main() -> None:
    """Print one line per case: the best times of some rounds, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = make_model(options.layers, options.hidden, getattr(torch, options.dtype))
    drawn = np.random.default_rng(0)
    cases = [(1, pairs, 1) for pairs in (1, 2, 4, 8, 20)] + [(8, 4, 1)] + [(1, pairs, pairs) for pairs in (2, 4, 20)]
    for queries, pairs, calls in cases:
        times: dict[bool, list[float]] = {True: [], False: []}
        for number in range(options.rounds):
            batch = make_batch(drawn, queries, pairs)
            for share in (True, False) if number % 2 else (False, True):
                times[share].append(seconds(model, batch, share=share, calls=calls))
        shared, whole = min(times[True]), min(times[False])
        what = f"{queries} x {pairs} pairs in {calls} calls"
        print(f"{what}: shared {1000 * shared:.0f} ms, whole {1000 * whole:.0f} ms, ratio {whole / shared:.2f}", flush=True)


if __name__ == "__main__":
    main()
