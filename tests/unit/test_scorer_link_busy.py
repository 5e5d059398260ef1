"""The link to a Scorer whose batch does not end, or whose training does not: down until it is well again."""

from __future__ import annotations

import asyncio
import subprocess

import pytest
from link_parts import SCORE, WARM, FakeClient, watched
from parts import played

from bento_service import scorer_link as room
from bento_service.errors import ScorerDown
from bento_service.scorer_link import WARM_UP_CALLS

pytestmark = pytest.mark.usefixtures("short_beats")


async def _some_heartbeats(client: FakeClient, count: int = 4) -> None:
    """Wait for heartbeats that are still to come."""
    for _ in range(client.heartbeats.qsize() + count):
        await client.heartbeats.get()


@played
async def test_a_scorer_whose_batch_hangs_is_down_until_it_ends() -> None:
    """Though its heartbeat answers: its callers are told, and back again it is trained again."""
    client = FakeClient()
    async with watched(client, hang_seconds=5.0) as (link, changes):
        assert await changes.get() is True
        client.script = [call := asyncio.get_running_loop().create_future()]
        asked = asyncio.create_task(link.score([b"a"]))
        await client.waits.wait()
        client.busy_seconds = 5.1
        assert await changes.get() is False
        with pytest.raises(ScorerDown) as caught:
            await asked
        assert caught.value.retry_after_seconds
        assert call.cancelled()
        assert link.gone_seconds > 0
        client.calls.clear()
        await _some_heartbeats(client)
        assert (link.up, client.calls, changes.qsize()) == (False, [], 0)
        client.busy_seconds = 0.0
        assert await changes.get() is True
        assert client.calls == [[WARM]] * WARM_UP_CALLS
        assert await link.score([b"a"]) == [SCORE]
        assert link.gone_seconds == 0


@played
async def test_a_long_batch_is_no_hung_one() -> None:
    """Up to the limit itself."""
    client = FakeClient()
    async with watched(client, hang_seconds=5.0) as (link, changes):
        assert await changes.get() is True
        client.busy_seconds = 5.0
        await _some_heartbeats(client)
        assert link.up
        assert await link.score([b"a"]) == [SCORE]


@played
async def test_a_scorer_that_hangs_from_the_start_is_never_up() -> None:
    """Nor is it trained: it would not answer."""
    client = FakeClient()
    client.busy_seconds = 61.0
    async with watched(client) as (link, changes):
        await _some_heartbeats(client)
        assert (link.up, client.calls, changes.qsize(), link.gone_seconds) == (False, [], 0, 0.0)


@played
async def test_training_that_runs_out_of_time_leaves_the_scorer_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """And begins anew with the next heartbeat."""
    monkeypatch.setattr(room, "_WARM_UP_TIMEOUT_SECONDS", 0.05)
    client = FakeClient()
    never: list[asyncio.Future[None]] = [asyncio.get_running_loop().create_future() for _ in range(2)]
    client.script = [*never]
    async with watched(client) as (link, changes):
        for _ in range(3):
            await client.heartbeats.get()
        assert all(call.cancelled() for call in never)
        assert client.calls[:2] == [[WARM]] * 2
        assert await changes.get() is True
        assert link.up
        assert len(client.calls) == 2 + WARM_UP_CALLS


@pytest.mark.parametrize(
    "trained",
    [0, 5, WARM_UP_CALLS - 1],
)
@played
async def test_a_scorer_that_ends_while_it_is_trained_is_not_up(process: subprocess.Popen[bytes], trained: int) -> None:
    """Its successor answers what waits in the backlog, and is trained itself."""
    client = FakeClient()
    client.pid = process.pid
    last = asyncio.Event()
    client.script = [*[[SCORE.pack()]] * trained, last]
    async with watched(client) as (link, changes):
        await client.waits.wait()
        client.silent = True
        process.kill()
        process.wait()
        last.set()
        await _some_heartbeats(client, 2)
        assert (link.up, changes.qsize(), len(client.calls)) == (False, 0, trained + 1)
