"""What `make claims` measures without a server, each in a process of its own: `python load/claims_alone.py MODE SEED`."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "load")]

from texts import Texts  # noqa: E402  the path must be set first

DOCUMENTS, CALLS = 50, 20
PAIRS, NO_LIMIT_TOKENS, COMES_WITH_TOKENS = 1000, 10**7, 4096


def tokenising(seed: int) -> dict[str, float]:
    """Milliseconds for 50 documents of a request, document by document and in one call."""
    import bentoml

    from bento_service.model_info import ModelInfo
    from bento_service.settings import load_settings
    from bento_service.store import wanted_tag
    from bento_service.tokenizer import Cut, PairTokenizer

    stored = bentoml.models.get(wanted_tag(load_settings()))
    info = ModelInfo.from_metadata(stored.info.metadata, str(stored.tag))
    tokenizer = PairTokenizer(Path(stored.path, "tokenizer.json"), info, max_length=info.max_length)
    texts = Texts(seed)
    spent: dict[str, list[float]] = {"one_by_one_ms": [], "at_once_ms": []}
    for _ in range(CALLS):
        query, documents = texts.request(DOCUMENTS)
        ways = {"one_by_one_ms": [[document] for document in documents], "at_once_ms": [documents]}
        for way, calls in ways.items():
            begin = time.perf_counter()
            for call in calls:
                tokenizer.encode_now(query, call, Cut(), time.monotonic() + 60, 0)
            spent[way].append(1000 * (time.perf_counter() - begin))
    tokenizer.close()
    return {way: statistics.median(all_ms) for way, all_ms in spent.items()}


def _memory(max_batch_tokens: int) -> Callable[[int], dict[str, float]]:
    def measure(seed: int) -> dict[str, float]:
        import bentoml

        from bento_service.model_info import ModelInfo
        from bento_service.scorer.loading import load_scorer
        from bento_service.settings import load_settings
        from bento_service.store import wanted_tag
        from bento_service.tokenizer import Cut, PairTokenizer

        settings = load_settings()
        stored = bentoml.models.get(wanted_tag(settings))
        info = ModelInfo.from_metadata(stored.info.metadata, str(stored.tag))
        loaded = load_scorer(Path(stored.path), info, settings)
        tokenizer = PairTokenizer(Path(stored.path, "tokenizer.json"), info, max_length=info.max_length)
        query, documents = Texts(seed).request(PAIRS)
        pairs = tokenizer.encode_now(query, documents, Cut(), time.monotonic() + 600, 0)
        blobs = [pair.windows[0].pack() for pair in pairs]
        tokenizer.close()
        loaded.engine.max_batch_tokens = max_batch_tokens
        before = psutil.Process().memory_info().rss
        begin = time.perf_counter()
        _, tally = loaded.engine.score(blobs)
        seconds = time.perf_counter() - begin
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            "more_bytes": max(0, peak - before),
            "peak_bytes": peak,
            "forwards": tally.forwards,
            "pairs_per_second": PAIRS / seconds,
        }

    return measure


MODES: Mapping[str, Callable[[int], dict[str, float]]] = {
    "tokenising": tokenising,
    "memory_in_passes": _memory(COMES_WITH_TOKENS),
    "memory_in_one_pass": _memory(NO_LIMIT_TOKENS),
}

if __name__ == "__main__":
    print(json.dumps(MODES[sys.argv[1]](int(sys.argv[2]))))
