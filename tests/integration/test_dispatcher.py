"""BentoML's dispatcher as we tune it: how often it looks, and how long a lone call waits for company."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
from bentoml._internal.marshal.dispatcher import CorkDispatcher, Optimizer

# Before the Scorer's room is imported.
_BENTOML_S_OWN = CorkDispatcher.outbound_call


@pytest.fixture
def room(builtin_tag: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the room, which wants a saved model, and take away what the Scorer's room has set."""
    assert builtin_tag
    assert _BENTOML_S_OWN.__module__.startswith("bentoml")
    room = import_module("bento_service.service.dispatcher")
    import_module("bento_service.service.scorer")
    monkeypatch.delattr(Optimizer, "wait")
    monkeypatch.setattr(CorkDispatcher, "outbound_call", _BENTOML_S_OWN)
    monkeypatch.setattr(CorkDispatcher, "TICKET_INTERVAL", 0.001)
    return room


def _after_a_busy_time() -> Optimizer:
    """Make an optimizer whose calls waited for half a second."""
    optimizer = Optimizer(3600.0)
    for _ in range(10):
        optimizer.log_outbound(3, 0.5, 0.2)
    optimizer.trigger_refresh()
    return optimizer


def test_a_busy_time_makes_nobody_wait_for_company(room: ModuleType) -> None:
    """BentoML's own would wait for half a second, which this test would notice if it ever learnt better."""
    assert _after_a_busy_time().wait == pytest.approx(0.5)
    room.wait_briefly()
    assert _after_a_busy_time().wait == room.LONGEST_WAIT_SECONDS
    assert Optimizer(3600.0).wait == 0


@pytest.mark.parametrize(("batch_seconds", "interval"), [(0.0, 0.001), (0.1, 0.002), (0.5, 0.01), (9.0, 0.01)])
def test_the_dispatcher_looks_as_often_as_a_batch_needs(room: ModuleType, batch_seconds: float, interval: float) -> None:
    """A fiftieth of it, between 1 and 10 ms."""
    room.poll_for(batch_seconds)
    assert interval == CorkDispatcher.TICKET_INTERVAL


@pytest.mark.parametrize("fails", [False, True])
def test_what_waits_when_a_batch_ends_is_the_next_batch(room: ModuleType, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """Also after a failure; who hears of the end and calls again comes into the one behind it, or would ride in a batch that was full."""
    room.begin_at_once()
    batches: list[list[str]] = []

    async def score(batch: Sequence[str]) -> Sequence[str]:
        batches.append(list(batch))
        await asyncio.sleep(0.02)
        if fails and batch[0] == "first":
            raise ValueError
        return batch

    async def play() -> None:
        async with _trained(score) as call:
            monkeypatch.setattr(CorkDispatcher, "TICKET_INTERVAL", 0.2)  # what the poll finds is too late
            batches.clear()

            async def twice() -> None:
                with contextlib.suppress(ValueError):
                    await call("first")
                await call("again")

            asked = [asyncio.create_task(twice())]
            while not batches:  # noqa: ASYNC110  a batch's begin is no event
                await asyncio.sleep(0.001)
            asked += [asyncio.create_task(call(name)) for name in ("second", "third")]
            await asyncio.gather(*asked)

    asyncio.run(play())
    assert batches == [["first"], ["second", "third"], ["again"]]


@contextlib.asynccontextmanager
async def _trained(score: Callable[..., Any]) -> AsyncIterator[Callable[[Any], Any]]:
    """Offer calls of a dispatcher that has been trained, one call at a time."""
    dispatcher: CorkDispatcher[Any, Any] = CorkDispatcher(3_600_000, 100, fallback=lambda: None, get_batch_size=lambda _: 1)
    dispatcher.optimizer = _after_a_busy_time()
    call = dispatcher(score)
    async with asyncio.timeout(30):
        for _ in range(12):
            await call("training")
        yield call
    dispatcher.shutdown()


def test_calls_that_come_together_still_share_a_batch(room: ModuleType) -> None:
    """While one runs, and within the wait."""
    room.wait_briefly()
    room.begin_at_once()
    sizes: list[int] = []

    async def score(batch: Sequence[object]) -> Sequence[object]:
        sizes.append(len(batch))
        await asyncio.sleep(0.02)
        return batch

    async def play() -> None:
        async with _trained(score) as call:
            await asyncio.gather(*(call(object()) for _ in range(8)))

    asyncio.run(play())
    assert sum(sizes) == 20
    assert max(sizes) >= 4
