"""The command line of `make load`, `latency`, `stress`, `soak` and `replay-load`."""

from __future__ import annotations

import argparse
import secrets
import shlex
from pathlib import Path

import arrivals
from drive import Plan
from report_options import REPORTS
from workload import WorkloadSpec

USERS = {
    "http": "HTTP users",
    "bentoml": "users of `bentoml.SyncHTTPClient`",
    "bentoml-async": "users of `bentoml.AsyncHTTPClient`",
}
# Another run asks for other texts, or a server that still runs would know them all.
_SEED_OF_THIS_RUN = secrets.randbelow(2**31)


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add what every mode takes."""
    parser.add_argument(
        "--url", help="of a running server; without it one is started and ended (KEY in the environment is sent as its key)"
    )
    parser.add_argument("--users", choices=USERS, default="http", help="HTTP, or BentoML's own Python clients")
    parser.add_argument("--documents", type=_count, default=10, help="of each request")
    parser.add_argument("--timeout", type=_positive, default=120.0, help="seconds after which a request has failed")
    parser.add_argument("--reports", type=Path, default=REPORTS, help="folder that the report goes to")
    parser.add_argument("--no-plots", dest="plots", action="store_false", help="write no pictures (they want matplotlib)")
    texts = parser.add_argument_group("what is asked")
    texts.add_argument(
        "--queries",
        help="file of queries, asked in its order, repeats kept: one a line, .tsv or .jsonl; without it they are generated",
    )
    texts.add_argument(
        "--corpus", help="file of documents: one a line, .tsv or .jsonl; without it they are generated, about 107 tokens a pair"
    )
    texts.add_argument("--repeats", type=_share, default=0.0, help="share of the generated requests that repeat an earlier one")
    texts.add_argument(
        "--repeat-within", type=_count, default=10_000, help="an earlier one: among the last so many different ones"
    )
    texts.add_argument("--zipf", type=float, default=1.0, help="slope of the queries' popularity among repeats; 0: all alike")
    texts.add_argument("--seed", type=int, help="of what is generated; default: another one in each run, 1 for a file of queries")
    bounds = parser.add_argument_group("thresholds: the run fails when one is broken")
    bounds.add_argument("--max-failed", type=_share, default=0.0, help="share of requests answered with neither 200 nor 429")
    bounds.add_argument("--max-p99-ms", type=_positive, help="of the time from when a request was due to its answer")


def add_load(parser: argparse.ArgumentParser) -> None:
    """Add what `load` takes."""
    parser.add_argument("--requests", type=_count, default=200)
    _add_loop(parser)
    _add_rejected(parser)


def add_latency(parser: argparse.ArgumentParser) -> None:
    """Add what `latency` takes."""
    parser.add_argument("--warmup", type=int, default=10, help="requests that do not count, before the others")
    parser.add_argument("--requests", type=_count, default=100)
    _add_rejected(parser)


def add_ramp(parser: argparse.ArgumentParser) -> None:
    """Add what raises a rate step by step."""
    parser.add_argument(
        "--first", type=_positive, help="requests/s of the first step; without it 0.3 of what a closed loop of 16 clients reaches"
    )
    parser.add_argument("--factor", type=_positive, default=1.25, help="from one step to the next")
    parser.add_argument("--most-steps", type=_count, default=12)
    parser.add_argument("--step-seconds", type=_positive, default=15.0)
    _add_arrivals(parser)
    parser.add_argument(
        "--min-answered", type=_share, default=0.95, help="of what is offered, answered with 200: what a step must hold"
    )


def add_stress(parser: argparse.ArgumentParser) -> None:
    """Add what `stress` takes."""
    add_ramp(parser)
    parser.add_argument(
        "--max-concurrency", type=_count, help="closed loops of 1, 2, 4 and so on up to so many clients, instead of rates"
    )
    parser.add_argument(
        "--min-knee", type=float, default=0.0, help="threshold: the knee, in requests/s or clients; at least one step must hold"
    )


def add_soak(parser: argparse.ArgumentParser) -> None:
    """Add what `soak` takes."""
    parser.add_argument("--minutes", type=_positive, default=20.0)
    parser.add_argument("--share", type=_share, default=0.8, help="of the capacity, which is measured first")
    parser.add_argument("--capacity-seconds", type=_positive, default=30.0, help="for which it is measured")
    parser.add_argument("--warm-minutes", type=float, default=3.0, help="after which memory must not grow")
    parser.add_argument(
        "--max-growth", type=_share, default=0.03, help="threshold: growth of any process's resident memory after that"
    )
    parser.add_argument(
        "--cache-entries", type=_count, default=5000, help="RERANKER_CACHE_ENTRIES of a server that is started here"
    )
    parser.add_argument("--no-redis", dest="redis", action="store_false", help="start no small Redis beside the server")
    _add_arrivals(parser)
    _add_rejected(parser)


def add_replay(parser: argparse.ArgumentParser) -> None:
    """Add what `replay-load` takes."""
    parser.add_argument("--limit", type=_count, help="only so many of the queries")
    _add_loop(parser)
    _add_rejected(parser)
    parser.add_argument(
        "--min-known", type=_share, default=0.0, help="threshold: known documents, of those that repeat earlier ones"
    )


def _add_loop(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--concurrency", type=_count, default=8, help="clients of a closed loop")
    parser.add_argument(
        "--rate", type=_positive, help="requests/s of an open loop, sent when they are due, instead of a closed one"
    )
    _add_arrivals(parser)


def _add_arrivals(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--arrivals", choices=arrivals.KINDS, default="poisson", help="of an open loop")


def _add_rejected(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-rejected", type=_share, default=0.0, help="threshold: share of requests answered with 429")


def plan_of(options: argparse.Namespace, url: str) -> Plan:
    """Make the plan that the options ask for."""
    drawn = 1 if options.queries else _SEED_OF_THIS_RUN
    spec = WorkloadSpec(
        seed=drawn if options.seed is None else options.seed,
        documents=options.documents,
        repeats=options.repeats,
        zipf=options.zipf,
        repeat_within=options.repeat_within,
        corpus=_absolute(options.corpus),
        queries=_absolute(options.queries),
        limit=getattr(options, "limit", None),
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
    return f"generated queries (seed {spec.seed}), {repeats}, {spec.documents} {documents} each"


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
