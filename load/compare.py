"""The service in each precision beside sentence-transformers and Infinity, in one run: `make compare` (`BENCH_ARGS=--quick` for five minutes).

All serve the same MiniLM-L6 cross-encoder shape with random weights (speed does not depend on them) and get the same new texts,
all on the CPU, one server at a time, in turns (A B C A B C), while the others idle. Machines are shared: compare ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests"), str(REPOSITORY / "load")]

import httpx  # noqa: E402  the path must be set first

from bench import NAME  # noqa: E402
from bento_service.errors import ModelError  # noqa: E402
from bento_service.settings import Quantization  # noqa: E402
from compare_report import INFINITY, SENTENCE_TRANSFORMERS, label, write_report  # noqa: E402
from cores import Meter  # noqa: E402
from loops import Bodies, Endpoint, Window, closed_loop, open_loop  # noqa: E402
from peer_servers import LIBRARIES, infinity, sentence_transformers  # noqa: E402
from provenance import provenance, versions  # noqa: E402
from report_options import add_report_options, command_line  # noqa: E402
from servers import Server  # noqa: E402
from shapes import make_source  # noqa: E402

OWN_LIBRARIES = ("bentoml", "torch", "transformers", "tokenizers", "starlette", "uvicorn")
WARM_CLIENTS, WARM_SECONDS, IDLE_SECONDS = 4, 3.0, 3.0
# Bodies made before a window: more than the fastest server here takes.
READY_PER_SECOND = 15


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured. seconds: of a window · fractions: offered load in the open loop, of what the closed loop reached."""

    rounds: int
    seconds: float
    clients: tuple[int, ...]
    fractions: tuple[float, ...]
    documents: int = 20


FULL = Plan(rounds=3, seconds=6, clients=(1, 2, 4, 8, 16), fractions=(0.25, 0.5, 0.75, 0.9))
QUICK = Plan(rounds=1, seconds=4, clients=(1, 4, 8), fractions=(0.5, 0.9))


@dataclass(frozen=True, slots=True)
class System:
    """A running server to be measured. process: its first one · facts: for the report."""

    name: str
    endpoint: Endpoint
    process: int
    facts: dict[str, Any]


def own_system(home: Path, source: Path, precision: Quantization, running: contextlib.ExitStack) -> System | None:
    """Save the model in a precision and serve it; None, with a line that says why, where this machine does not offer it."""
    from model_store_scripts.save_model import save_model  # reads BENTOML_HOME when it is imported

    try:
        save_model(str(source), quantization=precision, name=NAME)
    except ModelError as error:
        print(f"{precision} is left out: {error}", flush=True)
        return None
    with contextlib.ExitStack() as started:
        server = started.enter_context(Server(home, RERANKER_MODEL=NAME, QUANTIZATION=precision, RERANKER_DEVICE="cpu"))
        model = server.get("/health").json()["model"]
        if model["quantization"] != precision:
            print(f"{precision} is left out: {model['precision_reason']}", flush=True)
            return None
        running.push(started.pop_all())
    facts = {
        "versions": versions(Path(sys.executable), OWN_LIBRARIES),
        "model": {name: model.get(name) for name in ("device", "dtype", "quantization", "weight_bytes")},
    }
    return System(label(precision), Endpoint(server.port), server.process.pid, facts)


@contextlib.contextmanager
def systems(home: Path, precisions: Sequence[Quantization]) -> Iterator[list[System]]:
    """Start all servers; they end with the block, whatever ends it."""
    os.environ["BENTOML_HOME"] = str(home)
    source = make_source(home)
    with contextlib.ExitStack() as running:
        own = (own_system(home, source, precision, running) for precision in precisions)
        found = [system for system in own if system]
        for name, start in ((SENTENCE_TRANSFORMERS, sentence_transformers), (INFINITY, infinity)):
            peer = running.enter_context(start(source))
            facts = {"versions": versions(peer.bin / "python", LIBRARIES)}
            found.append(System(name, Endpoint(peer.port, "/rerank"), peer.process.pid, facts))
        yield found


def scores(system: System, body: bytes) -> dict[int, float]:
    """Ask for one ranking; scores by the documents' index."""
    url = f"http://127.0.0.1:{system.endpoint.port}{system.endpoint.path}"
    answer = httpx.post(url, content=body, headers={"content-type": "application/json"}, timeout=120).raise_for_status()
    return {result["index"]: result["relevance_score"] for result in answer.json()["results"]}


def greatest_differences(found: list[System], body: bytes) -> dict[str, float]:
    """Tell how far each system's scores are from sentence-transformers', which shows that all serve the same model."""
    answers = {system.name: scores(system, body) for system in found}
    reference = answers[SENTENCE_TRANSFORMERS]
    return {name: max(abs(score - reference[index]) for index, score in answer.items()) for name, answer in answers.items()}


def idle_cores(found: list[System]) -> float:
    """Measure how many cores all servers take together while nobody asks them anything."""
    meter = Meter([system.process for system in found])
    time.sleep(IDLE_SECONDS)
    return meter.read()[0]


def figures(system: System, turn: int, window: Window, meter: Meter) -> dict[str, Any]:
    """Put a window's raw figures in a row."""
    return {
        "system": system.name,
        "round": turn,
        "requests": len(window.latencies),
        "requests_per_second": round(window.requests_per_second, 4),
        "seconds": round(window.seconds, 3),
        "failed": len(window.failures),
        "failures": sorted(set(window.failures))[:3],
        "cached": window.cached,
        "cores_of_others": round(meter.read()[1], 2),
        "latencies_ms": [round(1000 * latency, 1) for latency in window.latencies],
    }


def rounds(found: list[System], plan: Plan) -> Iterator[dict[str, Any]]:
    """Measure in turns: every system under the same load with the same texts before the next load comes."""
    ready = int(READY_PER_SECOND * plan.seconds)
    servers = [system.process for system in found]
    for turn in range(plan.rounds):
        capacity = {system.name: 0.0 for system in found}
        for step, clients in enumerate(plan.clients):
            for system in found:
                bodies, meter = Bodies(1000 * turn + step, plan.documents, ready), Meter(servers)
                window = closed_loop(system.endpoint, bodies, clients=clients, seconds=plan.seconds)
                capacity[system.name] = max(capacity[system.name], window.requests_per_second)
                yield {"kind": "closed", "clients": clients} | figures(system, turn, window, meter)
        for step, fraction in enumerate(plan.fractions):
            for system in found:
                seed, rate = 1000 * turn + 500 + step, fraction * capacity[system.name]
                bodies, meter = Bodies(seed, plan.documents, ready), Meter(servers)
                window = open_loop(system.endpoint, bodies, requests_per_second=rate, seconds=plan.seconds, seed=seed)
                load = {"kind": "open", "fraction": fraction, "offered_requests_per_second": round(rate, 4)}
                yield load | figures(system, turn, window, meter)


def run(plan: Plan, precisions: Sequence[Quantization], told: dict[str, Any]) -> dict[str, Any]:
    """Start, warm, measure, end; returns all raw figures."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="reranker-compare-") as folder, systems(Path(folder), precisions) as found:
        for system in found:
            bodies = Bodies(10**6, plan.documents, 0)
            closed_loop(system.endpoint, bodies, clients=WARM_CLIENTS, seconds=WARM_SECONDS)
        differences = greatest_differences(found, Bodies(10**6 + 1, plan.documents, 1).take())
        result: dict[str, Any] = {
            "provenance": told,
            "plan": asdict(plan),
            "systems": {system.name: system.facts for system in found},
            "greatest_score_differences": differences,
            "idle_cores_of_all_servers": round(idle_cores(found), 3),
            "windows": [],
        }
        for window in rounds(found, plan):
            result["windows"].append(window)
            print(json.dumps({name: value for name, value in window.items() if name != "latencies_ms"}), flush=True)
    return result | {"minutes": round((time.monotonic() - begin) / 60, 1)}


def chosen_plan(options: argparse.Namespace) -> Plan:
    """Read the plan from the command line."""
    said = {
        name: value for name in ("rounds", "seconds", "clients", "fractions") if (value := getattr(options, name)) is not None
    }
    return replace(QUICK if options.quick else FULL, **said)


def arguments() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} instead of {FULL}")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of each window")
    parser.add_argument("--clients", type=lambda text: tuple(map(int, text.split(","))), help="of the closed loop: 1,2,4")
    parser.add_argument("--fractions", type=lambda text: tuple(map(float, text.split(","))), help="of the open loop: 0.5,0.9")
    add_report_options(parser)
    parser.add_argument("--render", action="store_true", help="measure nothing: write the report anew from its raw figures")
    return parser


def main() -> None:
    """Measure, and write the report and its raw figures."""
    options = arguments().parse_args()
    raw = options.reports / "compare.json"
    if not options.render:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers end with this process
        result = run(chosen_plan(options), options.precisions, provenance(command_line("compare", sys.argv[1:])))
        windows = ",\n".join(json.dumps(window) for window in result.pop("windows"))
        options.reports.mkdir(parents=True, exist_ok=True)
        raw.write_text(json.dumps(result, indent=1).removesuffix("\n}") + f',\n "windows": [\n{windows}\n]}}\n')
    write_report(options.reports, json.loads(raw.read_text()))
    print(options.reports / "compare.md")


if __name__ == "__main__":
    main()
