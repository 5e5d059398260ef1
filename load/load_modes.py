"""Load tests with locust: `make load`, `latency`, `stress`, `soak` and `replay-load`.

Each asks a running server (--url) or one that it starts, writes a report, and ends with 1 where a threshold is broken, with 2 where it
could not be run. docs/load.md says what each is for.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests"), str(REPOSITORY / "load")]

import load_options  # noqa: E402  the path must be set first
import load_report  # noqa: E402
from drive import DriveError, Plan, drive, fresh  # noqa: E402
from load_report import Result  # noqa: E402
from provenance import provenance  # noqa: E402
from target import Target, TargetError, running  # noqa: E402
from text_files import TextFileError  # noqa: E402
from thresholds import Threshold, broken  # noqa: E402
from workload import Workload  # noqa: E402

WARM_REQUESTS = 20  # before `load` and `replay-load`: a new server's first forward passes are slow
Mode = Callable[[argparse.Namespace, Target, Plan], Result]


def load(options: argparse.Namespace, target: Target, plan: Plan) -> Result:
    """Ask a number of requests, as many at once as there are clients, or at a rate."""
    drive(fresh(replace(plan, clients=4, requests=WARM_REQUESTS), 9), target.processes)
    if options.rate:
        plan = replace(plan, rate=options.rate, seconds=options.requests / options.rate)
        title = f"{options.requests:,} requests at {options.rate:g} a second ({options.arrivals})"
    else:
        plan = replace(plan, clients=options.concurrency, requests=options.requests)
        title = f"{options.requests:,} requests of {options.concurrency} clients"
    stretch = drive(plan, target.processes)
    told = stretch.told()
    thresholds = [*_common(options, told), _rejected(options, told)]
    return _result("load", f"Load: {title}", {"load": stretch}, told, thresholds)


def latency(options: argparse.Namespace, target: Target, plan: Plan) -> Result:
    """Ask one request after the other."""
    plan = replace(plan, clients=1, requests=options.warmup + options.requests)
    stretch = drive(plan, target.processes)
    told = stretch.told(options.warmup)
    title = f"Latency: {options.requests:,} requests, one after the other, after {options.warmup:,} to warm up"
    thresholds = [*_common(options, told), _rejected(options, told)]
    shown = replace(stretch, rows=stretch.rows[options.warmup :])
    return _result("latency", title, {"latency": shown}, told, thresholds)


def _common(options: argparse.Namespace, told: Mapping[str, Any]) -> list[Threshold]:
    share = told["failed"] / told["requests"] if told["requests"] else None
    return [
        Threshold("failed requests, share", share, options.max_failed),
        Threshold("p99", told["p99_ms"], options.max_p99_ms, " ms"),
    ]


def _rejected(options: argparse.Namespace, told: Mapping[str, Any]) -> Threshold:
    share = told["rejected"] / told["requests"] if told["requests"] else None
    return Threshold("requests turned away with 429, share", share, options.max_rejected)


def _result(mode: str, title: str, stretches: dict[str, Any], told: dict[str, Any], thresholds: list[Threshold]) -> Result:
    [(name, stretch)] = stretches.items()
    print(json.dumps({name: told}), flush=True)
    return Result(mode, title, stretches, {name: told}, thresholds, plots=_drawings(stretch.rows))


def _drawings(rows: Any) -> dict[str, Callable[[Path], None]]:
    def latency_plot(path: Path) -> None:
        from load_plots import plot_latency

        plot_latency(path, rows)

    def rates_plot(path: Path) -> None:
        from load_plots import plot_rates

        plot_rates(path, rows)

    return {"latency": latency_plot, "rates": rates_plot}


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = made.add_subparsers(dest="mode", required=True)
    one = modes.add_parser("load", help=load.__doc__)
    load_options.add_common(one)
    load_options.add_open_loop(one)
    load_options.add_rejected(one)
    one.add_argument("--requests", type=int, default=200)
    one.add_argument("--concurrency", type=int, default=8, help="clients of a closed loop")
    one.set_defaults(run=load, max_p99_ms=5000.0)
    one = modes.add_parser("latency", help=latency.__doc__)
    load_options.add_common(one)
    load_options.add_rejected(one)
    one.add_argument("--warmup", type=int, default=10, help="requests that do not count, before the others")
    one.add_argument("--requests", type=int, default=100)
    one.set_defaults(run=latency, max_p99_ms=1000.0)
    return made


def run(options: argparse.Namespace, said: list[str]) -> int:
    """Measure, report, judge; the exit code."""
    told = provenance(load_options.command_line(options.mode, said))
    Workload(load_options.plan_of(options, "").workload)  # a file that cannot be used stops it before a server is started
    with running(options.url) as target:
        about = target.about()
        result = options.run(options, target, load_options.plan_of(options, target.url))
    print(load_report.write(result, options.reports, told, about, plots=options.plots))
    problems = broken(result.thresholds)
    for line in problems:
        print(line, file=sys.stderr)
    return 1 if problems else 0


def main() -> int:
    """Parse the command line and run."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server ends with this process
    options = parser().parse_args()
    try:
        return run(options, sys.argv[2:])
    except (TargetError, TextFileError, DriveError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
