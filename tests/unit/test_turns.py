"""Big bodies one at a time, with rests; small ones at once."""

from __future__ import annotations

import asyncio
import time

import pytest
from caller_parts import played

from bento_service.errors import BodiesFull
from bento_service.turns import BIG_BYTES, Turns


@played
async def test_small_bodies_wait_for_nobody() -> None:
    """Neither for a big one nor for each other."""
    turns = Turns(5)
    async with turns.turn(BIG_BYTES + 1), turns.turn(BIG_BYTES), turns.turn(BIG_BYTES):
        pass


@played
async def test_a_big_body_waits_for_another_one_and_for_a_rest() -> None:
    """Of eight times what the other one took."""
    turns = Turns(5)
    async with turns.turn(BIG_BYTES + 1):
        time.sleep(0.02)  # noqa: ASYNC251  it stands for work that holds up the loop
    start = time.perf_counter()
    async with turns.turn(BIG_BYTES + 1):
        assert time.perf_counter() - start > 0.12


@played
async def test_a_body_whose_turn_does_not_come_is_told_to_come_again() -> None:
    """Waiting has an end."""
    turns = Turns(0.02)
    async with turns.turn(BIG_BYTES + 1):
        with pytest.raises(BodiesFull):
            async with turns.turn(BIG_BYTES + 1):
                pass
    assert turns._lock.locked()


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
@played
async def test_a_turn_is_given_back_however_it_ends(how: str) -> None:
    """Also while it is waited for."""
    turns = Turns(5)
    waiting: list[asyncio.Task[None]] = []

    async def wait() -> None:
        async with turns.turn(BIG_BYTES + 1):
            pass

    async def fail() -> None:
        async with turns.turn(BIG_BYTES + 1):
            waiting.append(asyncio.create_task(wait()))
            await asyncio.sleep(0)
            if how == "is cancelled":
                waiting[0].cancel()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    await asyncio.wait(waiting)
    await wait()
