"""The link to a Scorer that dies, hangs or is replaced: known at once, and no caller hangs."""

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


@played
async def test_a_killed_scorer_s_callers_are_told_at_once(process: subprocess.Popen[bytes]) -> None:
    """A zombie, too, is gone; nobody waits for an answer that cannot come."""
    client = FakeClient()
    client.pid = process.pid
    async with watched(client) as (link, changes):
        assert await changes.get() is True
        client.script = [call := asyncio.get_running_loop().create_future()]
        asked = asyncio.create_task(link.score([b"a"]))
        await client.waits.wait()
        client.silent = True
        process.kill()
        assert await changes.get() is False
        with pytest.raises(ScorerDown):
            await asked
        assert call.cancelled()
        assert link.gone_seconds > 0


@played
async def test_a_broken_connection_to_an_ended_process_is_not_tried_again(
    process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call itself notices, before the watch does."""
    monkeypatch.setattr(room, "PROCESS_CHECK_SECONDS", 60)
    client = FakeClient()
    client.pid = process.pid
    async with watched(client) as (link, changes):
        assert await changes.get() is True
        client.silent = True
        process.kill()
        process.wait()
        client.script = [ConnectionResetError()]
        with pytest.raises(ScorerDown):
            await link.score([b"a"])
        assert (changes.get_nowait(), link.up, client.calls[WARM_UP_CALLS:]) == (False, False, [[b"a"]])


@played
async def test_a_hung_scorer_is_down_after_its_silence_and_up_when_it_speaks() -> None:
    """Its process runs, but its callers are told; back again it is trained again."""
    client = FakeClient()
    async with watched(client, silence_seconds=0.1) as (link, changes):
        assert await changes.get() is True
        client.script = [call := asyncio.get_running_loop().create_future()]
        asked = asyncio.create_task(link.score([b"a"]))
        await client.waits.wait()
        client.silent = True
        assert await changes.get() is False
        with pytest.raises(ScorerDown):
            await asked
        assert call.cancelled()
        assert link.gone_seconds >= 0.1
        client.calls.clear()
        client.silent = False
        assert await changes.get() is True
        assert client.calls == [[WARM]] * WARM_UP_CALLS
        assert link.gone_seconds == 0


@played
async def test_a_few_missed_heartbeats_are_forgiven() -> None:
    """A long forward pass may be in their way."""
    client = FakeClient()
    async with watched(client) as (link, changes):
        await changes.get()
        client.silent = True
        for _ in range(client.heartbeats.qsize() + 4):
            await client.heartbeats.get()
        assert await link.score([b"a"]) == [SCORE]


@played
async def test_a_new_process_is_trained_before_it_is_up(process: subprocess.Popen[bytes]) -> None:
    """Callers of the old one are told."""
    client = FakeClient()
    async with watched(client) as (link, changes):
        await changes.get()
        client.script = [call := asyncio.get_running_loop().create_future()]
        asked = asyncio.create_task(link.score([b"a"]))
        await client.waits.wait()
        client.calls.clear()
        client.pid = process.pid
        assert await changes.get() is False
        with pytest.raises(ScorerDown):
            await asked
        assert call.cancelled()
        assert await changes.get() is True
        assert client.calls == [[WARM]] * WARM_UP_CALLS
        assert link.status == await client.heartbeat()


@pytest.mark.parametrize("goes_down", [False, True])
@played
async def test_a_cancelled_caller_stays_cancelled(goes_down: bool) -> None:
    """Also when the Scorer goes down in the same moment; its call is dropped."""
    client = FakeClient()
    async with watched(client) as (link, changes):
        await changes.get()
        client.script = [call := asyncio.get_running_loop().create_future()]
        asked = asyncio.create_task(link.score([b"a"]))
        await client.waits.wait()
        asked.cancel()
        if goes_down:
            link._go_down("a test")
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert (call.cancelled(), link.up, link._calls) == (True, not goes_down, set())
