"""Speed of the scorer called directly and over HTTP, alternating, in one run: `make bench`.

Direct: one process, 20 and 160 pairs a call, fp32, bf16 and int8, with texts in and scores out, and with token ids in. HTTP: a real `bentoml serve`,
8 clients x 20 documents, all text new. Beside them the speed of the matrix products alone. The model is the MiniLM-L6 cross-encoder shape with random weights
(speed does not depend on them) and the built-in model's tokenizer. Machines are shared: compare ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests"), str(REPOSITORY / "load")]

from loops import Bodies, Endpoint, closed_loop, percentile  # noqa: E402  the path must be set first
from shapes import make_source  # noqa: E402
from texts import Texts  # noqa: E402

NAME = "bench-minilm-l6"
CLIENTS, DOCUMENTS = 8, 20
CALL_SIZES = (20, 160)
PRECISIONS = ("none", "bf16", "int8")
LABELS = ("fp32", "bf16", "int8")
CEILING = "ceiling"


def make_model(home: Path) -> None:
    """Save it into the store, in every precision measured."""
    from model_store_scripts.save_model import save_model

    folder = make_source(home)
    for quantization in PRECISIONS:
        save_model(str(folder), quantization=quantization, name=NAME)


def direct(quantization: str, seconds: float, seed: int) -> dict[str, dict[str, float]]:
    """Time the scorer in this process for each call size."""
    import bentoml

    from bento_service.model_info import ModelInfo
    from bento_service.scorer.loading import load_scorer
    from bento_service.settings import load_settings
    from bento_service.store import variant_name
    from bento_service.tally import Tally
    from bento_service.tokenizer import Cut, PairTokenizer

    stored = bentoml.models.get(variant_name(NAME, quantization))
    info = ModelInfo.from_metadata(stored.info.metadata, str(stored.tag))
    loaded = load_scorer(Path(stored.path), info, load_settings())
    tokenizer = PairTokenizer(Path(stored.path, "tokenizer.json"), info, max_length=info.max_length)
    texts = Texts(seed)
    figures = {}
    for size in CALL_SIZES:
        requests = [texts.request(size) for _ in range(max(2, int(seconds * 200 / size)))]
        total = Tally()
        begin = time.perf_counter()
        for query, documents in requests:
            pairs = tokenizer.encode_now(query, documents, Cut(), time.monotonic() + 60, 0)
            _, tally = loaded.engine.score([pair.windows[0].pack() for pair in pairs])
            total.pairs += tally.pairs
            total.real_tokens += tally.real_tokens
            total.computed_tokens += tally.computed_tokens
            total.forward_seconds += tally.forward_seconds
            if time.perf_counter() - begin > seconds:
                break
        spent = time.perf_counter() - begin
        figures[str(size)] = {
            "pairs_per_second": total.pairs / spent,
            "tokens_per_second": total.real_tokens / spent,
            "tokens_per_second_from_ids": total.real_tokens / total.forward_seconds,
            "real_token_share": total.real_tokens / total.computed_tokens,
        }
    return figures


def in_own_process(quantization: str, seconds: float, seed: int) -> dict[str, dict[str, float]]:
    """Run direct(), or for `ceiling` the matrix products alone, in a fresh process with a Scorer's environment, as a Scorer is one."""
    from bento_service.settings import scorer_environment

    command = [sys.executable, __file__, "--direct", quantization, "--seconds", str(seconds), "--seed", str(seed)]
    return json.loads(
        subprocess.run(
            command,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, **scorer_environment(), "QUANTIZATION": "auto" if quantization == CEILING else quantization},
        ).stdout.splitlines()[-1]
    )


def over_http(port: int, seconds: float, seed: int) -> dict[str, float]:
    """Closed loop of 8 clients; any failed request ends the run."""
    window = closed_loop(Endpoint(port), Bodies(seed, DOCUMENTS, int(seconds * 15)), clients=CLIENTS, seconds=seconds)
    if window.failures:
        raise SystemExit(f"{len(window.failures)} requests failed, the first: {window.failures[0]}")
    return {
        "pairs_per_second": window.requests_per_second * DOCUMENTS,
        "tokens_per_second": window.tokens / window.seconds,
        "p50_ms": 1000 * percentile(window.latencies, 0.5),
        "p99_ms": 1000 * percentile(window.latencies, 0.99),
    }


def run(rounds: int, seconds: float) -> dict[str, object]:
    """Alternate direct and HTTP, round by round; medians over the rounds."""
    home = Path(tempfile.mkdtemp(prefix="reranker-bench-"))
    os.environ["BENTOML_HOME"] = str(home)
    try:
        make_model(home)
        raw: dict[str, list[dict[str, object]]] = {f"{kind} {label}": [] for kind in ("direct", "http") for label in LABELS} | {
            CEILING: []
        }
        from servers import Server

        for turn in range(rounds):
            raw[CEILING].append(in_own_process(CEILING, seconds, turn))
            print(json.dumps({"round": turn, CEILING: raw[CEILING][-1]}), flush=True)
            for quantization, label in zip(PRECISIONS, LABELS, strict=True):
                raw[f"direct {label}"].append(in_own_process(quantization, seconds, 1000 * turn))
                with Server(home, RERANKER_MODEL=NAME, QUANTIZATION=quantization) as server:
                    over_http(server.port, 3, 1000 * turn + 500)
                    raw[f"http {label}"].append(over_http(server.port, seconds, 1000 * turn + 100))
                    if turn == 0:
                        print(json.dumps({"model": server.get("/health").json()["model"]}), flush=True)
                print(
                    json.dumps({"round": turn, "precision": label, **{k: v[-1] for k, v in raw.items() if label in k}}),
                    flush=True,
                )
        return summary(raw)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def summary(raw: dict[str, list[dict[str, object]]]) -> dict[str, object]:
    """Medians, and the ratios that the project promises."""

    def median(kind: str, *keys: str) -> float:
        values = []
        for figures in raw[kind]:
            value: object = figures
            for key in keys:
                value = value[key]
            values.append(float(value))
        return statistics.median(values)

    result: dict[str, object] = {"machine": {"cpus": os.cpu_count(), "python": platform.python_version()}}
    for label in LABELS:
        direct_160 = median(f"direct {label}", "160", "pairs_per_second")
        http = median(f"http {label}", "pairs_per_second")
        result[label] = {
            "direct_pairs_per_second_at_20": round(median(f"direct {label}", "20", "pairs_per_second"), 1),
            "direct_pairs_per_second_at_160": round(direct_160, 1),
            "direct_tokens_per_second_at_20": round(median(f"direct {label}", "20", "tokens_per_second")),
            "direct_tokens_per_second_at_160": round(median(f"direct {label}", "160", "tokens_per_second")),
            "direct_tokens_per_second_at_160_from_ids": round(
                from_ids := median(f"direct {label}", "160", "tokens_per_second_from_ids")
            ),
            "matrix_products_alone_tokens_per_second": round(ceiling := median(CEILING, label)),
            "direct_at_160_from_ids_over_matrix_products": round(from_ids / ceiling, 3),
            "http_pairs_per_second": round(http, 1),
            "http_tokens_per_second": round(median(f"http {label}", "tokens_per_second")),
            "http_p50_ms": round(median(f"http {label}", "p50_ms")),
            "http_over_direct_at_160": round(http / direct_160, 3),
            "real_token_share_at_20": round(median(f"direct {label}", "20", "real_token_share"), 3),
            "real_token_share_at_160": round(median(f"direct {label}", "160", "real_token_share"), 3),
        }
    for label in LABELS[1:]:
        ratio = median(f"direct {label}", "160", "pairs_per_second") / median("direct fp32", "160", "pairs_per_second")
        result[f"{label}_over_fp32_direct_at_160"] = round(ratio, 2)
    return result


def main() -> None:
    """Parse the command line and print one JSON object a line, the summary last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement")
    parser.add_argument("--direct", choices=(*PRECISIONS, CEILING), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server ends with this process
    if options.direct == CEILING:
        from ceiling import ceilings

        print(json.dumps(ceilings()))
    elif options.direct:
        print(json.dumps(direct(options.direct, options.seconds, options.seed)))
    else:
        print(json.dumps(run(options.rounds, options.seconds), indent=1))


if __name__ == "__main__":
    main()
