"""The command line of `make load`, `latency`, `stress`, `soak` and `replay-load`."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import arrivals
from drive import Plan
from report_options import REPORTS
from workload import WorkloadSpec

# Kept here and not in locust_clients.py, which imports gevent.
USERS = ("http", "bentoml", "bentoml-async")


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add what every mode takes."""
    parser.add_argument(
        "--url", help="of a running server; without it one is started and ended (API_KEY in the environment is sent as its key)"
    )
    parser.add_argument("--users", choices=USERS, default="http", help="HTTP, or BentoML's own Python clients")
    parser.add_argument("--documents", type=_count, default=10, help="of each request")
    parser.add_argument("--timeout", type=_positive, default=120.0, help="seconds after which a request has failed")
    parser.add_argument("--reports", type=Path, default=REPORTS, help="folder that the report goes to")
    parser.add_argument("--no-plots", dest="plots", action="store_false", help="write no pictures (they want matplotlib)")
    texts = parser.add_argument_group("what is asked")
    texts.add_argument(
        "--queries", help="file of queries, asked in its order, repeats kept: one a line, .tsv or .jsonl; default: generated"
    )
    texts.add_argument(
        "--corpus", help="file of documents: one a line, .tsv or .jsonl; default: generated, about 107 tokens a pair"
    )
    texts.add_argument("--repeats", type=_share, default=0.0, help="share of the generated requests that repeat an earlier one")
    texts.add_argument(
        "--repeat-within", type=_count, default=10_000, help="an earlier one: among the last so many different ones"
    )
    texts.add_argument("--zipf", type=float, default=1.0, help="slope of the queries' popularity among repeats; 0: all alike")
    texts.add_argument("--seed", type=int, default=1)
    bounds = parser.add_argument_group("thresholds: the run fails when one is broken")
    bounds.add_argument("--max-failed", type=_share, help="share of requests answered with neither 200 nor 429")
    bounds.add_argument("--max-p99-ms", type=_positive, help="of the time from when a request was due to its answer")
    parser.set_defaults(max_failed=0.0)


def add_open_loop(parser: argparse.ArgumentParser) -> None:
    """Add --rate and --arrivals."""
    parser.add_argument(
        "--rate", type=_positive, help="requests/s of an open loop, sent when they are due; default: a closed loop"
    )
    add_arrivals(parser)


def add_arrivals(parser: argparse.ArgumentParser) -> None:
    """Add --arrivals."""
    parser.add_argument("--arrivals", choices=arrivals.KINDS, default="poisson", help="of an open loop")


def add_rejected(parser: argparse.ArgumentParser) -> None:
    """Add --max-rejected, where being turned away is a threshold of its own."""
    parser.add_argument("--max-rejected", type=_share, default=0.0, help="threshold: share of requests answered with 429")


def plan_of(options: argparse.Namespace, url: str) -> Plan:
    """Make the plan that the options ask for."""
    spec = WorkloadSpec(
        seed=options.seed,
        documents=options.documents,
        repeats=options.repeats,
        zipf=options.zipf,
        repeat_within=options.repeat_within,
        corpus=_absolute(options.corpus),
        queries=_absolute(options.queries),
    )
    arrival = getattr(options, "arrivals", "poisson")
    return Plan(url, spec, options.users, arrivals=arrival, timeout_seconds=options.timeout)


def described(spec: WorkloadSpec) -> str:
    """Say in words what is asked; files by name."""
    documents = f"documents of `{Path(spec.corpus).name}`" if spec.corpus else "generated documents"
    if spec.queries:
        return f"queries of `{Path(spec.queries).name}` in their order, {spec.documents} {documents} each"
    repeats = (
        f"{100 * spec.repeats:g} % of them repeat one of the last {spec.repeat_within:,} (Zipf, slope {spec.zipf:g})"
        if spec.repeats
        else "all new"
    )
    return f"generated queries, {repeats}, {spec.documents} {documents} each"


def command_line(target: str, said: list[str]) -> str:
    """Spell the make command that repeats a run; places on this machine are nobody's business."""
    kept = [word if word.startswith("-") or "/" not in word else Path(word).name for word in said if word != "--no-plots"]
    for hidden in ("--reports", "--url"):
        if hidden in kept:
            place = kept.index(hidden)
            del kept[place : place + 2]
    return f"make {target}" + (f' BENCH_ARGS="{shlex.join(kept)}"' if kept else "")


def _absolute(path: str | None) -> str | None:
    return str(Path(path).resolve()) if path else None


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("must be a share from 0 to 1")
    return value
