"""Load tests with locust: `make load`, `latency`, `stress`, `soak` and `replay-load`.

Each asks a running server (--url) or one that it starts, writes a report, and ends with 1 where a threshold is broken, with 2 where it
could not be run. docs/load.md says what each is for.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests"), str(REPOSITORY / "load")]

import load_options  # noqa: E402  the path must be set first
import load_report  # noqa: E402
from drive import DriveError, Plan, Stretch, drive, warm_plan  # noqa: E402
from load_report import Result, timeline  # noqa: E402
from provenance import provenance  # noqa: E402
from soak import small_caches, soak  # noqa: E402
from stress import stress  # noqa: E402
from target import Target, TargetError, running  # noqa: E402
from text_files import TextFileError  # noqa: E402
from thresholds import Threshold, broken, on_rejected, on_requests, share  # noqa: E402
from workload import Workload  # noqa: E402

Mode = Callable[[argparse.Namespace, Target, Plan], Result]


def load(options: argparse.Namespace, target: Target, plan: Plan) -> Result:
    """Ask a number of requests, as many at once as there are clients, or at a rate."""
    drive(warm_plan(plan))
    if options.rate:
        plan = replace(plan, rate=options.rate, seconds=options.requests / options.rate)
        title = f"{options.requests:,} requests at {options.rate:g} a second ({options.arrivals})"
    else:
        plan = replace(plan, clients=options.concurrency, requests=options.requests)
        title = f"{options.requests:,} requests of {options.concurrency} clients"
    stretch = drive(plan, target.processes)
    told = stretch.told()
    return _result(options.mode, f"Load: {title}", stretch, told, [*on_requests(told, options), on_rejected(told, options)])


def latency(options: argparse.Namespace, target: Target, plan: Plan) -> Result:
    """Ask one request after the other."""
    plan = replace(plan, clients=1, requests=options.warmup + options.requests)
    stretch = drive(plan, target.processes)
    told = stretch.told(options.warmup)
    title = f"Latency: {options.requests:,} requests, one after the other, after {options.warmup:,} to warm up"
    shown = replace(stretch, rows=stretch.rows[options.warmup :])
    return _result("latency", title, shown, told, [*on_requests(told, options), on_rejected(told, options)])


def replay_load(options: argparse.Namespace, target: Target, plan: Plan) -> Result:
    """Ask a file's queries once, in their order."""
    total = len(Workload(plan.workload).file_queries)
    options.requests = min(total, options.limit or total)
    result = load(options, target, plan)
    told = result.figures[options.mode]
    known = told["hits"] + told["shared"]
    repeats = round((told["repeated_share"] or 0) * told["pairs"])
    result.title = result.title.replace("Load: ", "Replay: ")
    result.notes.append(
        f"{100 * (told['repeated_share'] or 0):.1f} % of the requests repeat an earlier one; {known:,} documents of answers were known or just being computed, "
        f"{repeats:,} would have been if nothing were ever forgotten."
    )
    if options.min_known:
        name = "known documents, of those that repeat"
        result.thresholds.append(Threshold(name, share(known, repeats), options.min_known, at_least=True))
    return result


def _result(mode: str, title: str, stretch: Stretch, told: dict[str, Any], thresholds: list[Threshold]) -> Result:
    print(json.dumps({mode: told}), flush=True)
    return Result(mode, title, {mode: stretch}, {mode: told}, thresholds, plots=timeline(stretch.rows))


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = made.add_subparsers(dest="mode", required=True)

    def add(name: str, run: Mode, **defaults: object) -> argparse.ArgumentParser:
        one = modes.add_parser(name, help=run.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        load_options.add_common(one)
        one.set_defaults(run=run, **defaults)
        return one

    load_options.add_load(add("load", load, max_p99_ms=5000.0))
    load_options.add_latency(add("latency", latency, max_p99_ms=1000.0))
    load_options.add_stress(add("stress", stress, max_p99_ms=2000.0))
    load_options.add_soak(add("soak", soak, max_p99_ms=10_000.0, repeats=0.3))
    load_options.add_replay(add("replay-load", replay_load, max_p99_ms=5000.0))
    return made


def run(options: argparse.Namespace, said: list[str]) -> int:
    """Measure, report, judge; the exit code."""
    told = provenance(load_options.command_line(options.mode, said))
    Workload(load_options.plan_of(options, "").workload)  # a file that cannot be used stops it before a server is started
    with settings_of(options) as settings, running(options.url, **settings) as target:
        about = target.about()
        result = options.run(options, target, load_options.plan_of(options, target.url))
    print(load_report.write(result, options.reports, told, about, plots=options.plots))
    problems = broken(result.thresholds)
    for line in problems:
        print(line, file=sys.stderr)
    return 1 if problems else 0


def settings_of(options: argparse.Namespace) -> AbstractContextManager[dict[str, object]]:
    """Give what a server that is started here is started with beside the environment's settings."""
    return small_caches(options) if options.mode == "soak" and not options.url else nullcontext({})


def main() -> int:
    """Parse the command line and run."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server ends with this process
    commands = parser()
    options = commands.parse_args()
    if options.mode == "replay-load" and not options.queries:
        commands.error("say which: --queries <file of queries>")
    try:
        return run(options, sys.argv[2:])
    except (TargetError, TextFileError, DriveError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
