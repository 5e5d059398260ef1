"""Three servers behind nginx with one Redis, the baseline against all features: `make scenario`.

Baseline: fp32, no caches, no Redis, no micro-batching. All features: int8 (or --precision), both caches, micro-batching. Both get the same
requests, of which 40 % repeat earlier ones, in an open loop whose rate rises until p99 breaks the same bound: four times what the baseline takes for a request alone. nginx sends each request to
the server with the least under way, so repeats meet all three.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests"), str(REPOSITORY / "load")]

import load_options  # noqa: E402  the path must be set first
import load_report  # noqa: E402
from balancer import Balancer, BalancerError, binary  # noqa: E402
from drive import DriveError, Stretch, drive, fresh, warm_plan  # noqa: E402
from load_report import Result  # noqa: E402
from provenance import provenance  # noqa: E402
from ramp import Bounds, Step, knee, ramp  # noqa: E402
from redis_servers import RedisServer  # noqa: E402
from servers import Server  # noqa: E402
from stress import Ramp, capacity  # noqa: E402
from target import Target, TargetError, model_home, wait_ready  # noqa: E402
from text_files import TextFileError  # noqa: E402
from thresholds import Threshold, broken, share  # noqa: E402
from workload import Workload  # noqa: E402

SERVERS = 3
ALONE_REQUESTS = 60  # one after the other: the unloaded latency
BASELINE, FEATURES = "baseline", "all features"
OFF = {"ENABLE_PREDICTION_CACHE": "false", "REDIS_ENABLED": "false", "MICRO_BATCH_ENABLED": "false"}
ON = {"ENABLE_PREDICTION_CACHE": "true", "REDIS_ENABLED": "true", "MICRO_BATCH_ENABLED": "true"}


class Measured(NamedTuple):
    """One system's steps, their stretches, what it says of itself, and the bound of its p99."""

    steps: list[Step]
    stretches: dict[str, Stretch]
    about: dict[str, Any]
    bound_ms: float


@contextlib.contextmanager
def cluster(home: Path, settings: Mapping[str, str], *, redis: bool) -> Iterator[Target]:
    """Start three servers, their Redis if they have one, and nginx; all end with the block."""
    with contextlib.ExitStack() as stack:
        said = dict(settings)
        if redis:
            said["REDIS_URL"] = stack.enter_context(RedisServer()).url
        servers = [Server(home, **said) for _ in range(SERVERS)]
        for server in servers:
            stack.callback(server.stop)
        for server in servers:
            wait_ready(server)
        balancer = stack.enter_context(Balancer([server.port for server in servers]))
        yield Target(balancer.url, servers, said)


def measure(home: Path, options: argparse.Namespace, name: str, bound_ms: float | None) -> Measured:
    """Raise the rate on one system. bound_ms: of p99; None: so many times the unloaded median, which is measured first."""
    features = name == FEATURES
    threads = {"RERANKER_TORCH_THREADS": str(options.torch_threads)} if options.torch_threads else {}
    settings = (ON | {"QUANTIZATION": options.precision} if features else OFF | {"QUANTIZATION": "none"}) | threads
    with cluster(home, settings, redis=features) as target:
        plan = load_options.plan_of(options, target.url)
        drive(warm_plan(plan))
        alone = drive(fresh(replace(plan, clients=1, requests=ALONE_REQUESTS), -3), target.processes).told()
        most = capacity(plan, target, options.capacity_seconds).told()
        print(json.dumps({f"{name}, one client": alone, f"{name}, closed loop": most}), flush=True)
        bound_ms = bound_ms or round(options.p99_factor * alone["p50_ms"])
        first = options.first or options.first_share * most["answered_per_second"]
        run = Ramp(plan, target, f"{name} ", seconds=options.step_seconds)
        bounds = Bounds(bound_ms, options.min_answered, options.max_failed)
        steps = ramp(run.measure, bounds, first=max(first, 0.1), factor=options.factor, most_steps=options.most_steps, refine=2)
        return Measured(steps, run.stretches, target.about() | {"one_client": alone, "closed_loop": most}, bound_ms)


def run(options: argparse.Namespace, said: list[str]) -> int:
    """Measure both, report, judge; the exit code."""
    binary()  # missing, it should be missed before the models are saved
    Workload(load_options.plan_of(options, "").workload)  # a file that cannot be used, too
    told = provenance(load_options.command_line("scenario", said))
    with model_home("none", options.precision) as home:
        baseline = measure(home, options, BASELINE, options.max_p99_ms)
        features = measure(home, options, FEATURES, baseline.bound_ms)
    result = judged(options, {BASELINE: baseline, FEATURES: features})
    print(load_report.write(result, options.reports, told, features.about, plots=options.plots))
    problems = broken(result.thresholds)
    for line in problems:
        print(line, file=sys.stderr)
    return 1 if problems else 0


def judged(options: argparse.Namespace, found: Mapping[str, Measured]) -> Result:
    """Compare the two."""
    best = {name: knee(each.steps) for name, each in found.items()}
    baseline, features = best[BASELINE], best[FEATURES]
    ratio = round(features.level / baseline.level, 3) if baseline and features else None
    told = [step.told for step in found[FEATURES].steps]
    computed, pairs, requests = (sum(each[name] for each in told) for name in ("computed", "pairs", "requests"))
    repeats = share(sum(round(each["repeated_share"] * each["requests"]) for each in told), requests) or 0.0
    thresholds = [
        Threshold("sustained requests/s, all features over baseline, at the same p99", ratio, options.min_ratio, at_least=True),
        Threshold("pairs computed, of those asked for", _rounded(share(computed, pairs)), options.max_computed),
    ]
    stretches = {name: stretch for each in found.values() for name, stretch in each.stretches.items()}
    steps = [step for each in found.values() for step in each.steps]
    figures = {name: dict(step.told) for name, step in zip(stretches, steps, strict=True)}
    bound_ms = found[BASELINE].bound_ms
    alone = found[BASELINE].about["one_client"]["p50_ms"]
    chosen = (
        ""
        if options.max_p99_ms
        else f" ({options.p99_factor:g} times the {alone:g} ms that the baseline takes for one client's requests, at the median)"
    )
    notes = [
        *(_sustained(name, step) for name, step in best.items()),
        (
            f"Ratio: {ratio if ratio is not None else 'none'}. A rate is sustained with a p99 of at most {bound_ms:g} ms{chosen}, the same for both, at least "
            f"{100 * options.min_answered:g} % answered with 200, and at most {100 * options.max_failed:g} % failed; a step that does not hold is measured twice. "
            f"With all features {100 * repeats:.1f} % of the requests repeated an earlier one, and {computed:,} of {pairs:,} pairs were computed."
        ),
        (
            f"Three servers on this machine behind nginx ({SERVERS} `bentoml serve`, least connections), the load generator beside them. Baseline: "
            f"{load_report.server_line(found[BASELINE].about)}"
        ),
    ]
    extra = {
        "ratio": ratio,
        "sustained": {name: step.level if step else None for name, step in best.items()},
        "p99_bound_ms": bound_ms,
        "baseline": found[BASELINE].about,
        "broken": {name: step.broken for name, step in zip(figures, steps, strict=True)},
    }

    def curves(path: Path) -> None:
        from load_plots import RATE, plot_curves

        plot_curves(path, {name: each.steps for name, each in found.items()}, bound_ms, RATE)

    return Result(
        "scenario",
        f"Three servers, {100 * options.repeats:g} % repeats: baseline and all features",
        stretches,
        figures,
        thresholds,
        notes,
        extra,
        {"curves": curves},
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _sustained(name: str, step: Step | None) -> str:
    if step is None:
        return f"**{name.capitalize()}: no step held.** Raise --p99-factor or lower --first."
    return f"**{name.capitalize()}: {step.level:.3g} requests/s** sustained, p99 {step.told['p99_ms']:g} ms, {step.told['pairs_per_second']:g} pairs/s."


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    load_options.add_common(made)
    load_options.add_ramp(made)
    made.add_argument(
        "--p99-factor", type=float, default=4.0, help="bound of p99, without --max-p99-ms: times the baseline's unloaded median"
    )
    made.add_argument(
        "--first-share", type=float, default=0.5, help="without --first: of what a closed loop of 16 clients reaches"
    )
    made.add_argument("--capacity-seconds", type=float, default=15.0, help="for which that is measured")
    made.add_argument("--precision", default="int8", help="of all features; the baseline is in fp32")
    made.add_argument("--torch-threads", type=int, default=1, help="of each model worker, in both; 0: torch's own choice")
    made.add_argument("--min-ratio", type=float, default=3.0, help="threshold: sustained rate over the baseline's")
    made.add_argument("--max-computed", type=float, default=0.62, help="threshold: pairs computed, of those asked for")
    made.set_defaults(documents=20, repeats=0.4, repeat_within=200, step_seconds=40.0, factor=1.15)
    return made


def main() -> int:
    """Parse the command line and run."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers end with this process
    try:
        return run(parser().parse_args(), sys.argv[1:])
    except (TargetError, TextFileError, DriveError, BalancerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
