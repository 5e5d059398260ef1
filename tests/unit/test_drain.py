"""The drain: what was taken is answered, what comes later is not taken, and the end comes in time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from parts import played

from bento_service import drain as room
from bento_service.drain import Drain
from bento_service.errors import ShuttingDown

LONG = 60.0


@pytest.fixture(autouse=True)
def _short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what was sent in time arrive at once, and the processes end at once."""
    monkeypatch.setattr(room, "LAST_ARRIVALS_SECONDS", 0.0)
    monkeypatch.setattr(room, "ENDING_SECONDS", 0.0)


class End:
    """What is called at the end."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.calls = 0

    def __call__(self) -> None:
        """Count it."""
        self.calls += 1
        self.reached.set()

    async def wait(self) -> None:
        """Wait for it, within bounds."""
        async with asyncio.timeout(5):
            await self.reached.wait()


@played
async def test_the_end_waits_for_what_was_taken(log: Callable[[], list[str]]) -> None:
    """It comes when the last one is answered, and the log says what it waits for."""
    drain, end = Drain(drain_seconds=0, shutdown_seconds=LONG), End()
    with drain.take(), drain.take():
        drain.begin(end)
        while not drain.closed:  # noqa: ASYNC110  a matter of a few turns of the loop
            await asyncio.sleep(0)
        assert not end.calls
        assert drain.taken == 2
    await end.wait()
    assert end.calls == 1
    assert log() == ["shutting down: /readyz is off, requests are taken for 0 s more, 2 are in hand"]


@played
async def test_requests_are_taken_during_the_drain_period() -> None:
    """Although it has begun; a second signal changes nothing."""
    begun: list[bool] = []
    drain, end = Drain(drain_seconds=LONG, shutdown_seconds=2 * LONG, on_begin=lambda: begun.append(True)), End()
    for _ in range(2):
        drain.begin(end)
    await asyncio.sleep(0)
    assert drain.begun
    assert begun == [True]
    assert not drain.closed
    async with drain.bounded():
        pass
    assert not end.calls


@played
async def test_ctrl_c_skips_the_drain_period() -> None:
    """Nobody waits at the keyboard for a balancer."""
    drain, end = Drain(drain_seconds=LONG, shutdown_seconds=2 * LONG), End()
    drain.begin(end, at_once=True)
    await end.wait()


@played
async def test_what_is_not_answered_in_time_is_told_so() -> None:
    """Also what begins later; the end does not wait for it."""
    drain, end = Drain(drain_seconds=0, shutdown_seconds=0.05), End()
    with drain.take():
        drain.begin(end)
        with pytest.raises(ShuttingDown) as caught:
            async with drain.bounded():
                await asyncio.sleep(LONG)
        assert caught.value.retry_after_seconds == 1
        with pytest.raises(ShuttingDown):
            async with drain.bounded():
                await asyncio.sleep(LONG)
        await end.wait()


@played
async def test_another_time_out_within_stays_what_it_is() -> None:
    """Only the drain's own becomes ShuttingDown."""
    drain = Drain(drain_seconds=0, shutdown_seconds=0)
    with pytest.raises(TimeoutError):
        async with drain.bounded():
            raise TimeoutError
