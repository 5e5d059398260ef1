"""The edge: callers that leave take their work along."""

from __future__ import annotations

import asyncio

import pytest
from caller_parts import Caller, played
from starlette.requests import Request

from bento_service.edge import unless_gone
from bento_service.errors import InvalidRequest
from bento_service.intake import ClientGone


async def _read(caller: Caller) -> Request:
    await caller.request.body()
    return caller.request


@played
async def test_work_that_ends_first_is_the_answer() -> None:
    """Its value or its error."""

    async def work(error: Exception | None) -> str:
        if error:
            raise error
        return "answer"

    request = await _read(Caller())
    assert await unless_gone(request, work(None)) == "answer"
    with pytest.raises(InvalidRequest, match="wrong"):
        await unless_gone(request, work(InvalidRequest("wrong")))


@pytest.mark.parametrize("leaves", [True, False], ids=["the caller leaves", "the server's time-out"])
@played
async def test_work_that_nobody_waits_for_is_cancelled_and_has_cleaned_up(leaves: bool) -> None:
    """Before unless_gone returns."""
    begun, cleaned = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            cleaned.set()

    caller = Caller()
    waiting = asyncio.create_task(unless_gone(await _read(caller), work()))
    await begun.wait()
    caller.left.set() if leaves else waiting.cancel()
    with pytest.raises(ClientGone if leaves else asyncio.CancelledError):
        await waiting
    assert cleaned.is_set()
