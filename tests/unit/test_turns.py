"""Turns: big bodies one at a time, the smallest first; whoever leaves passes the turn on."""

from __future__ import annotations

import asyncio

import pytest
from parts import played

from bento_service.errors import BodiesFull
from bento_service.turns import BIG_BYTES, Turns


@played
async def test_small_bodies_wait_for_nobody() -> None:
    """However many big ones there are."""
    turns = Turns()
    async with turns.turn(BIG_BYTES + 1, timeout_seconds=1), turns.turn(BIG_BYTES, timeout_seconds=0):
        pass


@played
async def test_the_smallest_of_those_who_wait_is_next() -> None:
    """So who sends the largest ones keeps nobody waiting but others like him."""
    turns, done = Turns(), []

    async def work(size: int) -> None:
        async with turns.turn(size, timeout_seconds=5):
            done.append(size - BIG_BYTES)

    async with turns.turn(BIG_BYTES + 1, timeout_seconds=5):
        waiting = [asyncio.create_task(work(BIG_BYTES + size)) for size in (30, 10, 20, 10)]
        await asyncio.sleep(0)
    await asyncio.gather(*waiting)
    assert done == [10, 10, 20, 30]


@played
async def test_a_turn_that_does_not_come_is_an_error() -> None:
    """And is left to others."""
    turns = Turns()
    async with turns.turn(BIG_BYTES + 1, timeout_seconds=5):
        with pytest.raises(BodiesFull):
            async with turns.turn(BIG_BYTES + 1, timeout_seconds=0.01):
                pass
    async with turns.turn(BIG_BYTES + 1, timeout_seconds=5):
        pass


@pytest.mark.parametrize("come", [False, True], ids=["before it came", "just when it has come"])
@played
async def test_whoever_leaves_passes_the_turn_on(come: bool) -> None:
    """The next one works."""
    turns = Turns()

    async def work() -> None:
        async with turns.turn(BIG_BYTES + 1, timeout_seconds=5):
            pass

    holder = asyncio.create_task(turns.turn(BIG_BYTES + 1, timeout_seconds=5).__aenter__())
    await holder
    leaving, staying = [asyncio.create_task(work()) for _ in range(2)]
    await asyncio.sleep(0)
    if come:
        turns._pass_on()
    leaving.cancel()
    await asyncio.wait({leaving})
    if not come:
        turns._pass_on()
    await asyncio.wait_for(staying, 5)
    assert leaving.cancelled()


@played
async def test_work_is_followed_by_a_rest_of_eight_times_its_length() -> None:
    """In which the others run."""
    turns = Turns()
    loop = asyncio.get_running_loop()
    async with turns.turn(BIG_BYTES + 1, timeout_seconds=5) as effort:
        effort.seconds = 0.02
    ended = loop.time()
    async with turns.turn(BIG_BYTES + 1, timeout_seconds=5):
        assert loop.time() - ended > 0.15
