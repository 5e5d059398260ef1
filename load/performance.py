"""A running server's performance, for a person: `make metrics [URL=http://localhost:3000] [KEY=…]`.

Everything is since the server's start, from its /health and /metrics. Percentiles come from histograms, so they are as fine as those: within
a bucket the requests are taken to lie evenly, as Prometheus does. The exit code is 1 where no server answers, with a line that says so.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

TIMEOUT_SECONDS = 10
STAGES = ("parse", "cache", "tokenize", "queue", "batch_wait", "forward", "rank")
NOTHING = "-"


class Samples:
    """What /metrics said."""

    def __init__(self, text: str) -> None:
        self._samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def sum(self, name: str, **labels: str) -> float:
        """Add up the samples of a name that have these labels, whatever others they have."""
        return sum(value for _, value in self._of(name, labels))

    def by(self, name: str, label: str) -> dict[str, float]:
        """Add up the samples of a name by one of their labels, largest first."""
        sums: dict[str, float] = {}
        for given, value in self._of(name, {}):
            sums[given[label]] = sums.get(given[label], 0.0) + value
        return dict(sorted(sums.items(), key=lambda each: -each[1]))

    def mean(self, name: str, **labels: str) -> float | None:
        """Average of a histogram; None where it is empty."""
        return ratio(self.sum(f"{name}_sum", **labels), self.sum(f"{name}_count", **labels))

    def quantile(self, share: float, name: str, **labels: str) -> float | None:
        """Estimate a quantile of a histogram as Prometheus' histogram_quantile does; None where it is empty."""
        buckets: dict[float, float] = {}
        for given, value in self._of(f"{name}_bucket", labels):
            buckets[float(given["le"])] = buckets.get(float(given["le"]), 0.0) + value
        below, reached = 0.0, 0.0
        wanted = share * buckets.get(math.inf, 0.0)
        for bound, count in sorted(buckets.items()) if wanted else ():
            if count >= wanted:
                return below if math.isinf(bound) else below + (bound - below) * (wanted - reached) / (count - reached)
            below, reached = bound, count
        return None

    def _of(self, name: str, labels: dict[str, str]) -> Iterable[tuple[dict[str, str], float]]:
        return (
            (sample.labels, sample.value)
            for sample in self._samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


def ratio(part: float, whole: float) -> float | None:
    """Divide, where there is something to divide by."""
    return part / whole if whole else None


def percent(share: float | None) -> str:
    """Write a share for people."""
    return NOTHING if share is None else f"{100 * share:.1f} %"


def milliseconds(seconds: float | None) -> str:
    """Write a time for people."""
    return NOTHING if seconds is None else f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def size(number_bytes: float) -> str:
    """Write a size for people."""
    return f"{number_bytes / 2**20:,.0f} MiB"


def number(value: float | None) -> str:
    """Write a number for people."""
    return NOTHING if value is None else f"{value:,.1f}".removesuffix(".0")


def summary(health: dict[str, Any], samples: Samples) -> list[tuple[str, str]]:
    """Say it in lines, each with its title."""
    return [*_model(health, samples), *_requests(health, samples), *_queue(samples), *_work(samples), *_machine(samples)]


def _model(health: dict[str, Any], samples: Samples) -> list[tuple[str, str]]:
    model = health["model"]
    scorers = f"{samples.sum('reranker_scorers_up'):.0f} of {samples.sum('reranker_scorers'):.0f} model workers"
    return [
        ("status", f"{health['status']}, {scorers}"),
        ("model", f"{model['tag']} ({model['kind']}), {model['quantization']} in {model['dtype']} on {model['device']}"),
    ]


def _requests(health: dict[str, Any], samples: Samples) -> list[tuple[str, str]]:
    routes = [route for route in samples.by("reranker_requests_total", "route") if "rerank" in route or "score" in route]
    refused = ", ".join(f"{code} {count:.0f}" for code, count in samples.by("reranker_rejections_total", "code").items())
    lines = [
        (
            "requests",
            (
                f"{health['requests']['total']:,} answered, {samples.sum('reranker_requests_in_flight'):.0f} in flight, "
                f"success rate {percent(health['requests']['success_rate'])}"
            ),
        ),
        ("refused", refused or "none"),
    ]
    for route in routes:
        times = [milliseconds(samples.quantile(share, "reranker_request_seconds", route=route)) for share in (0.5, 0.95, 0.99)]
        lines.append((route, "p50 {}, p95 {}, p99 {}".format(*times)))
    for stage in STAGES:
        mean = milliseconds(samples.mean("reranker_stage_seconds", stage=stage))
        late = milliseconds(samples.quantile(0.95, "reranker_stage_seconds", stage=stage))
        lines.append((f"  {stage}", f"mean {mean}, p95 {late}"))
    return lines


def _queue(samples: Samples) -> list[tuple[str, str]]:
    waiting = samples.sum("reranker_requests_waiting")
    return [
        (
            "queue",
            (
                f"{waiting:.0f} requests wait, the oldest for {milliseconds(samples.sum('reranker_queue_age_seconds'))} of "
                f"{milliseconds(samples.sum('reranker_queue_wait_limit_seconds'))}; {samples.sum('reranker_requests_active'):.0f} are scored; "
                f"{samples.sum('reranker_queue_pairs'):,.0f} of {samples.sum('reranker_queue_limit_pairs'):,.0f} pairs"
            ),
        )
    ]


def _work(samples: Samples) -> list[tuple[str, str]]:
    hits, computed = samples.sum("reranker_cache_hits_total"), samples.sum("reranker_cache_misses_total")
    shared = samples.sum("reranker_shared_pairs_total")
    real, all_tokens = samples.sum("reranker_tokens_total", kind="real"), samples.sum("reranker_tokens_total", kind="computed")
    padding = None if not all_tokens else 1 - real / all_tokens
    speed = ratio(real, samples.sum("reranker_batch_seconds_sum"))
    return [
        (
            "cache",
            (
                f"hit ratio {percent(ratio(hits, hits + computed + shared))} ({hits:,.0f} known, {shared:,.0f} shared, {computed:,.0f} computed), "
                f"{samples.sum('reranker_cache_entries'):,.0f} entries"
            ),
        ),
        (
            "batches",
            (
                f"{samples.sum('reranker_batch_pairs_count'):,.0f}, of {number(samples.mean('reranker_batch_pairs'))} pairs and "
                f"{number(samples.mean('reranker_batch_tokens'))} tokens on average; padding {percent(padding)}; {number(speed)} tokens/s while computing"
            ),
        ),
        (
            "pairs",
            ", ".join(f"{outcome} {count:,.0f}" for outcome, count in samples.by("reranker_pairs_total", "outcome").items())
            + f"; {samples.sum('reranker_memory_retries_total'):,.0f} forward passes repeated for want of memory",
        ),
    ]


def _machine(samples: Samples) -> list[tuple[str, str]]:
    resident, limit = samples.by("reranker_process_resident_bytes", "process"), samples.sum("reranker_memory_limit_bytes")
    together = sum(resident.values())
    processes = ", ".join(f"{name} {size(taken)}" for name, taken in resident.items())
    lines = [("memory", f"{size(together)}, {percent(ratio(together, limit))} of {size(limit)}: {processes}")]
    used, busy = samples.by("reranker_gpu_memory_used_bytes", "gpu"), samples.by("reranker_gpu_utilisation_ratio", "gpu")
    whole = samples.by("reranker_gpu_memory_bytes", "gpu")
    for gpu, taken in used.items():
        lines.append((f"GPU {gpu}", f"{size(taken)} of {size(whole[gpu])}, {percent(busy[gpu])} busy"))
    return lines if used else [*lines, ("GPU", "none")]


def fetch(url: str, path: str, key: str | None) -> str:
    """Read a page of the server; SystemExit with one line where that fails. /health is read with 503, too: it says what is down."""
    request = urllib.request.Request(url + path, headers={"authorization": f"Bearer {key}"} if key else {})  # noqa: S310  http(s) alone, checked
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        if error.code == 503 and path == "/health":  # noqa: PLR2004  Service Unavailable
            return error.read().decode()
        wanted = ": it wants an API key (make metrics KEY=…)" if error.code == 401 else ""  # noqa: PLR2004  Unauthorized
        raise SystemExit(f"error: {url}{path} answers with {error.code}{wanted}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise SystemExit(
            f"error: no server answers at {url} ({reason}): start one with `make serve`, or say where: make metrics URL=…"
        ) from None


def main() -> None:
    """Print the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://localhost:3000")
    parser.add_argument("--key", help="an API key, where the server wants one for its pages")
    options = parser.parse_args()
    url = options.url.rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise SystemExit(f"error: {url} is no http address: make metrics URL=http://localhost:3000")
    try:
        health, samples = json.loads(fetch(url, "/health", options.key)), Samples(fetch(url, "/metrics", options.key))
        lines = summary(health, samples)
    except (ValueError, KeyError, TypeError):
        raise SystemExit(f"error: what answers at {url} is no reranker: say where it is with make metrics URL=…") from None
    for title, text in lines:
        sys.stdout.write(f"{title:<14} {text}\n")


if __name__ == "__main__":
    main()
