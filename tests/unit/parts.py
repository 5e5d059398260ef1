"""What several unit tests share: a Scorer's link without a Scorer, an admission in front of it, and a model's metadata."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine
from typing import Any, cast

from bento_service.admission import Admission, Bounds, Place
from bento_service.metrics import EntryMetrics
from bento_service.model_info import ModelInfo
from bento_service.pairs import Outcome, PairScore


def played(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test, but not for ever."""

    @functools.wraps(test)
    def whole(**fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(**fixtures), 10))

    return whole


class FakeLink:
    """A Scorer whose calls wait in `calls`, each with the future that ends it; a pair's score is its number. most: pairs of a batch, if not batch_pairs."""

    def __init__(self, batch_pairs: int = 32, *, most: int | None = None, up: bool = True, pairs_per_second: float = 0.0) -> None:
        self.batch_pairs, self.up, self.pairs_per_second = batch_pairs, up, pairs_per_second
        self.most_batch_pairs = most or batch_pairs
        self.calls: asyncio.Queue[tuple[list[int], asyncio.Future[list[PairScore]]]] = asyncio.Queue()

    async def score(self, blobs: list[bytes]) -> list[PairScore]:
        """Wait until the test ends the call."""
        end = asyncio.get_running_loop().create_future()
        self.calls.put_nowait(([int(blob) for blob in blobs], end))
        return cast("list[PairScore]", await end)

    async def answer(self, outcome: Outcome = Outcome.SCORED) -> list[int]:
        """End the next call, once it has come, and tell which pairs were in it."""
        numbers, end = await self.calls.get()
        begun = time.monotonic()  # a batch of its own
        end.set_result([PairScore(float(number), outcome, begun=begun) for number in numbers])
        return numbers


def make_admission(metrics: EntryMetrics, *links: FakeLink, workers: int = 2, most: int = 10_000, **bounds: Any) -> Admission:
    """Make an admission that prefers the first of equal links; one call of 32 pairs at a time, unless told otherwise."""
    admission = Admission(cast("Any", links), entry_workers=workers, bounds=Bounds(pairs=most, **bounds), metrics=metrics)
    admission._turns._sent_pairs = dict.fromkeys(cast("Any", links), 0)
    return admission


def ask(admission: Admission, count: int, start: int = 0, *, seconds: float = 60.0) -> asyncio.Task[list[float]]:
    """Begin to score `count` pairs, numbered from `start` on, with a place in the queue."""
    blobs = [str(number).encode() for number in range(start, start + count)]

    async def placed() -> list[float]:
        place = Place()
        with admission.place_for(count, place):
            return [score.raw for score in await admission.score(blobs, deadline=time.monotonic() + seconds, place=place)]

    return asyncio.create_task(placed())


def metric_names(kind: type) -> list[str]:
    """Name the attributes of a class that make a metric."""
    return [name for name, each in vars(kind).items() if isinstance(each, functools.cached_property) and not name.startswith("_")]


def assert_idle(admission: Admission, metrics: EntryMetrics) -> None:
    """Everything that was taken has been given back."""
    assert admission.queued_pairs == 0
    assert all((each.pairs, each.waiting) == (0, {}) for each in admission._turns._under_way.values())
    assert (len(admission._turns._queue), admission._turns._company) == (0, {})
    assert (admission._waiting_requests, admission._waiting_first_pairs) == (0, 0)
    assert not admission._calls
    assert (metrics.requests_waiting._value.get(), metrics.requests_active._value.get()) == (0, 0)


def make_info(kind: str, **fields: Any) -> ModelInfo:
    """Describe a saved model of either kind."""
    known = {"source": "s", "revision": "r", "licence": None, "architecture": "BertModel", "dtype": "float32"}
    known |= {"quantization": "none", "activation": "sigmoid", "max_length": "512"}
    given: dict[str, Any] = {"uses_token_types": True, "golden": [], "source_sha256": {}, "files_sha256": {}, **fields}
    return ModelInfo.model_validate({**known, "library_versions": {}, **given, "kind": kind})
