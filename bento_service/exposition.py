"""All processes' metrics, read together: for /metrics, with what only shows when one looks, and for /health."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import psutil
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from bento_service.scorer_link import ScorerLink
from bento_service.settings import run_directory

CONTENT_TYPE = CONTENT_TYPE_LATEST
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
_AGE = "reranker_queue_age_seconds"


class Source(Protocol):
    """Something that is measured when it is read."""

    def collect(self) -> Iterable[Metric]:
        """Measure it."""


class Exposition:
    """What GET /metrics says. links: to the Scorers, as this worker sees them · machine: what the server takes of it."""

    def __init__(self, links: Sequence[ScorerLink], machine: Source) -> None:
        self._links = links
        self._machine = machine
        self._turn = asyncio.Lock()

    async def text(self) -> bytes:
        """Render the Prometheus text of all worker processes together; in a thread, since it reads many files, and in one at a time."""
        async with self._turn:
            return await asyncio.to_thread(self._render)

    def _render(self) -> bytes:
        registry = CollectorRegistry()
        for source in (_Counted(), self._machine, _Scorers(self._links)):
            registry.register(source)
        return generate_latest(registry)


def totals() -> Samples:
    """Read every sample that is counted, of all worker processes together, by name and sorted labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in _Counted().collect()
        for sample in family.samples
    }


class _Counted(Collector):
    """What the processes counted."""

    def collect(self) -> Iterator[Metric]:
        """Go through all metrics; a time of coming becomes an age."""
        for family in _counting().collect():
            if family.name == _AGE:
                now = time.monotonic()
                family.samples = [each._replace(value=_age(each.value, now)) for each in family.samples]
            yield family


class _Scorers(Collector):
    """How many there are and should be."""

    def __init__(self, links: Sequence[ScorerLink]) -> None:
        self._links = links

    def collect(self) -> Iterator[Metric]:
        """Count them."""
        for name, meaning, count in (
            ("reranker_scorers_up", "Model workers that answer the worker that is asked.", sum(link.up for link in self._links)),
            ("reranker_scorers", "Model workers that there should be.", len(self._links)),
        ):
            family = Metric(name, meaning, "gauge")
            family.add_sample(name, {}, count)
            yield family


def _age(since: float, now: float) -> float:
    """Tell how old what came at `since` is; 0 where nothing is waiting, or nothing ever has."""
    return max(0.0, now - since) if since else 0.0


def _counting() -> Collector:
    """All processes' values where there are several, else this process's."""
    directory = run_directory()
    if directory is None:
        return REGISTRY
    # Gauges of a killed worker would stay in the sums: nothing else takes them out.
    for path in Path(directory).glob("gauge_live*_*.db"):
        pid = int(path.stem.rpartition("_")[2])
        if not psutil.pid_exists(pid):
            # Another worker may be at it, too.
            with contextlib.suppress(FileNotFoundError):
                mark_process_dead(pid)  # type: ignore[no-untyped-call]
    return MultiProcessCollector(None, directory)  # type: ignore[no-untyped-call]
