"""Speed and faithfulness of int8 and bf16 engines on CPU, alternating, in one run: `make engines`.

Speed: the MiniLM-L6 cross-encoder shape with random weights, 160 pairs a call, each engine's best micro-batch size. Faithfulness: scores
against fp32, and whether a score depends on the batch it rode in.
Machines are shared: compare ratios; where others compute too, those of the tokens per second of CPU, which being put aside does not change.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer
from transformers import AutoModel, BertConfig, BertForSequenceClassification

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "load")]

from engine_makers import MAKERS, THREADS, BiEncoder, CrossEncoder, Model  # noqa: E402  the path must be set first
from micro_batches import Engine, outputs_of, padded, sorted_batches  # noqa: E402
from model_store_scripts.sources import find_source  # noqa: E402
from texts import Texts  # noqa: E402

PAIRS = 160
SIZES = (8, 16, 32)
CALIBRATION_BATCHES = 20
REFERENCE = "torch fp32"
SHORTEST_PARAGRAPH = 40  # characters; headings are shorter


def calls(tokenizer: Tokenizer, seed: int) -> Iterator[list[Encoding]]:
    """One query and 160 documents at a time, as token ids."""
    texts = Texts(seed)
    while True:
        query, documents = texts.request(PAIRS)
        yield tokenizer.encode_batch([(query, document) for document in documents])


class Rate(NamedTuple):
    """Real tokens (padding does not count) per second by the clock, and per second of one core that this process had."""

    tokens_per_second: float
    tokens_per_cpu_second: float


def rate(engine: Engine, tokenizer: Tokenizer, size: int, seconds: float) -> Rate:
    """Measure a window; tokenising and laying out take no part.

    A call's micro-batches come in a shuffled order, so that a window that ends within a call is not one of short texts alone. Every
    window begins with the same texts: in the second round an engine that compiles for each shape has seen them.
    """
    shuffled = random.Random(0)
    tokens, spent, worked = 0, 0.0, 0.0
    for encodings in calls(tokenizer, seed=0):
        batches = [batch for _, batch in sorted_batches(encodings, size)]
        shuffled.shuffle(batches)
        for batch in batches:
            begin, begin_cpu = time.perf_counter(), time.process_time()
            engine(batch)
            spent += time.perf_counter() - begin
            worked += time.process_time() - begin_cpu
            tokens += int(batch["attention_mask"].sum())
            if spent >= seconds:
                return Rate(tokens / spent, tokens / worked)
    raise AssertionError  # calls() never ends


def batch_dependence(engine: Engine, encodings: Sequence[Encoding], query: Encoding | None) -> float:
    """Largest change of a 0..1 score between a sequence alone and among 15 others.

    query: of a bi-encoder, encoded alone, so that only the documents' company changes.
    """
    together = outputs_of(engine, encodings[:64], 16)
    alone = torch.cat([engine(padded([encoding])) for encoding in encodings[:64]])
    if query is None:
        return float((torch.sigmoid(together) - torch.sigmoid(alone)).abs().max())
    vector = engine(padded([query]))[0]
    return float(((together - alone) @ vector).abs().max() / 2)


def make_engines(model: Model, wanted: Sequence[str]) -> tuple[dict[str, Engine], dict[str, str]]:
    """Build and try each; an engine that does not run here is told apart, with the reason."""
    engines, failures = {}, {}
    for name in wanted:
        begin = time.perf_counter()
        try:
            engines[name] = MAKERS[name](model)
            for batch in model.calibration[:3]:
                engines[name](batch)
        except Exception as error:  # noqa: BLE001  whatever a library raises is its row of the table
            engines.pop(name, None)
            failures[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}" if str(error) else type(error).__name__
        print(
            json.dumps({"made": name, "seconds": round(time.perf_counter() - begin, 1), "failed": failures.get(name)}), flush=True
        )
    return engines, failures


def speeds(engines: dict[str, Engine], tokenizer: Tokenizer, rounds: int, seconds: float) -> dict[str, dict[str, object]]:
    """Choose each engine's micro-batch size in a first alternation of shorter windows, then measure it in rounds."""
    by_size: dict[str, dict[int, float]] = defaultdict(dict)
    for size, (name, engine) in itertools.product(SIZES, engines.items()):
        by_size[name][size] = rate(engine, tokenizer, size, seconds / 4).tokens_per_cpu_second
    raw: dict[str, list[Rate]] = defaultdict(list)
    for turn, (name, engine) in itertools.product(range(rounds), engines.items()):
        best = max(SIZES, key=by_size[name].__getitem__)
        raw[name].append(rate(engine, tokenizer, best, seconds))
        figures = {"round": turn, "engine": name, "micro_batch": best, "load": round(os.getloadavg()[0], 1)}
        print(json.dumps(figures | {key: round(value) for key, value in raw[name][-1]._asdict().items()}), flush=True)
    return {
        name: {field: round(statistics.median(getattr(one, field) for one in found)) for field in Rate._fields}
        | {"first_look_per_cpu_second": {str(size): round(value) for size, value in by_size[name].items()}}
        for name, found in raw.items()
    }


def faithfulness(engines: dict[str, Engine], tokenizer: Tokenizer) -> dict[str, dict[str, float]]:
    """0..1 scores of the random cross-encoder against fp32's."""
    encodings = next(calls(tokenizer, seed=7))
    scores = {name: torch.sigmoid(outputs_of(engine, encodings, 16))[:, 0].numpy() for name, engine in engines.items()}
    return {
        name: {
            "random_correlation": float(np.corrcoef(scores[name], scores[REFERENCE])[0, 1]),
            "random_largest_difference": float(np.abs(scores[name] - scores[REFERENCE]).max()),
            "random_batch_dependence": batch_dependence(engine, encodings, None),
        }
        for name, engine in engines.items()
    }


def dependence(engines: dict[str, Engine], tokenizer: Tokenizer) -> dict[str, dict[str, float]]:
    """How much a score of the built-in model depends on the batch."""
    texts = Texts(seed=7)
    query, documents = texts.request(64)
    query_ids, document_ids = tokenizer.encode(query), tokenizer.encode_batch(documents)
    return {
        name: {"builtin_batch_dependence": batch_dependence(engine, document_ids, query_ids)} for name, engine in engines.items()
    }


def paragraphs() -> list[str]:
    """English: what static quantisation of the built-in model learns its ranges from."""
    files = [REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
    return [part for file in files for part in file.read_text(encoding="utf-8").split("\n\n") if len(part) > SHORTEST_PARAGRAPH]


def models(folder: Path) -> tuple[Tokenizer, Model, Tokenizer, Model]:
    """The random cross-encoder and the true bi-encoder, each with its tokenizer's window."""
    builtin = find_source("builtin", None).folder
    joint, apart = (Tokenizer.from_file(str(builtin / "tokenizer.json")) for _ in range(2))
    for tokenizer, window in ((joint, 512), (apart, 256)):
        tokenizer.no_padding()
        tokenizer.enable_truncation(window)
    torch.manual_seed(0)
    shape = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, num_labels=1)
    drawn = CrossEncoder(BertForSequenceClassification(shape)).eval()
    true = BiEncoder(AutoModel.from_pretrained(builtin, add_pooling_layer=False, dtype=torch.float32)).eval()
    english = apart.encode_batch(paragraphs())
    learnt = []
    for encodings in (next(calls(joint, seed=5)), english):
        batches = [batch for _, batch in sorted_batches(encodings, 8)]
        learnt.append(batches[:: max(1, len(batches) // CALIBRATION_BATCHES)])
    folders = folder / "random", folder / "true"
    for place in folders:
        place.mkdir()
    return joint, Model(drawn, learnt[0], folders[0]), apart, Model(true, learnt[1], folders[1])


def machine() -> dict[str, object]:
    """What the figures depend on."""
    names = ("torch", "transformers", "torchao", "onnx", "onnxruntime", "openvino", "nncf", "numpy")
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = dict(line.split(":", 1) for line in lines if ":" in line)
    values = {name.strip(): value.strip() for name, value in cpu.items()}
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
    return {
        "cpu": values.get("model name", platform.processor()),
        "flags": [flag for flag in wanted if flag in values.get("flags", "").split()],
        "cpus": os.cpu_count(),
        "threads": THREADS,
        "load_average_at_start": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
    }


def main() -> None:
    """Print one JSON object a line as it goes, the summary last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="0: the built-in model alone")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--engines", nargs="+", choices=MAKERS, default=list(MAKERS), metavar="NAME", help=f"beside {REFERENCE}")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(THREADS)
    wanted = list(dict.fromkeys([REFERENCE, *options.engines]))
    summary: dict[str, object] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        joint, drawn, apart, true = models(Path(folder))
        rows: dict[str, dict[str, object]] = {name: {} for name in wanted}
        failures: dict[str, str] = {}
        if options.rounds:
            engines, failures = make_engines(drawn, wanted)
            rows = speeds(engines, joint, options.rounds, options.seconds)
            for name, figures in faithfulness(engines, joint).items():
                rows[name] |= figures
            print(json.dumps({"so far": rows}), flush=True)
            del engines
        engines, true_failures = make_engines(true, list(rows))
        for name, figures in dependence(engines, apart).items():
            rows[name] |= figures
    summary |= {"engines": rows, "failed": failures | {f"{name}, built-in": why for name, why in true_failures.items()}}
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
