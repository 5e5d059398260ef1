"""One computation and those who wait for it: the first word counts, and the last one who leaves drops it once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from parts import played

from bento_service.cache.keys import pair_keys
from bento_service.flight import Answer, Flight, Origin, until_settled, was_given_up
from bento_service.pairs import KnownScore
from bento_service.schemas import RerankQuery

KEYS = pair_keys(RerankQuery("q", []), ["a", "b", "c"], fingerprint="f", max_length=64)
ONE, TWO = (Answer(KnownScore(raw, 3, truncated=False), Origin.COMPUTED) for raw in (1.0, 2.0))
LONG_SECONDS = 60.0


def make_futures(count: int) -> list[asyncio.Future[Any]]:
    """Make futures of the running loop."""
    return [asyncio.get_running_loop().create_future() for _ in range(count)]


def make_flight(places: tuple[int, ...] = (0, 1)) -> tuple[Flight, asyncio.Task[None]]:
    """Make a computation that goes on until it is cancelled; the first of its pairs is a, the second b."""
    flight = Flight(KEYS, places, b"token")
    flight.task = asyncio.create_task(asyncio.sleep(LONG_SECONDS))
    return flight, flight.task


async def begin_waiting(futures: list[asyncio.Future[Any]]) -> asyncio.Task[None]:
    """Wait in a task of its own, which has begun when this returns."""
    waiting = asyncio.create_task(until_settled(futures, timeout_seconds=LONG_SECONDS))
    await asyncio.sleep(0)
    return waiting


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
@played
async def test_it_waits_until_all_are_settled(order: tuple[int, ...]) -> None:
    """In whatever order; not a future less."""
    futures = make_futures(3)
    waiting = await begin_waiting(futures)
    for place in order:
        for _ in range(3):
            await asyncio.sleep(0)
        assert not waiting.done()
        futures[place].set_result(ONE)
    await waiting


@pytest.mark.parametrize("end", [lambda f: f.set_result(None), lambda f: f.set_exception(ValueError()), lambda f: f.cancel()])
@pytest.mark.parametrize("early", [True, False])
@played
async def test_one_that_was_given_up_or_failed_ends_the_wait(end: Callable[[asyncio.Future[Any]], None], early: bool) -> None:
    """Whether that came before the wait or during it; the others stay as they are."""
    futures = make_futures(3)
    futures[0].set_result(ONE)
    if early:
        end(futures[1])
    waiting = await begin_waiting(futures)
    if not early:
        assert not waiting.done()
        end(futures[1])
    await waiting
    assert was_given_up(futures[1])
    assert not futures[2].done()


@played
async def test_nothing_to_wait_for_is_no_wait() -> None:
    """Neither without futures nor when all are settled."""
    done = make_futures(2)
    for future in done:
        future.set_result(ONE)
    await until_settled([], timeout_seconds=LONG_SECONDS)
    await until_settled(done, timeout_seconds=LONG_SECONDS)


@played
async def test_the_time_that_is_up_ends_the_wait() -> None:
    """Also when there was none."""
    futures = make_futures(2)
    futures[0].set_result(ONE)
    for seconds in (0.0, 0.02):
        await until_settled(futures, timeout_seconds=seconds)
    assert not futures[1].done()


@pytest.mark.parametrize("way", ["settled", "given up", "time-out", "cancelled"])
@played
async def test_nothing_of_a_wait_stays_on_the_futures(way: str) -> None:
    """They outlive it, and gather many waits."""
    futures = make_futures(2)
    if way == "time-out":
        await until_settled(futures, timeout_seconds=0.01)
    else:
        waiting = await begin_waiting(futures)
        assert all(future._callbacks for future in futures)
        if way == "settled":
            for future in futures:
                future.set_result(ONE)
        elif way == "given up":
            futures[0].set_result(None)
        else:
            waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert not any(future._callbacks for future in futures)
    assert [future.done() for future in futures] == {"settled": [True, True], "given up": [True, False]}.get(way, [False, False])


@played
async def test_a_wait_does_not_see_more_of_a_future_than_its_end() -> None:
    """Two that end in the same moment, one of them badly, are one end."""
    futures = make_futures(2)
    waiting = await begin_waiting(futures)
    futures[0].set_result(None)
    futures[1].set_exception(ValueError())
    await waiting


@played
async def test_the_last_one_who_leaves_drops_what_has_not_gone_out() -> None:
    """Not before."""
    flight, task = make_flight()
    with flight.wanted():
        with flight.wanted(), flight.wanted():
            pass
        await asyncio.sleep(0)
        assert not task.cancelling()
    assert task.cancelling() == 1
    await asyncio.wait({task})
    assert task.cancelled()


@played
async def test_it_is_dropped_once_whoever_comes_and_goes_afterwards() -> None:
    """The clean-up after it must not be disturbed."""
    flight, task = make_flight()
    for _ in range(3):
        with flight.wanted():
            pass
    assert task.cancelling() == 1
    await asyncio.wait({task})


@pytest.mark.parametrize("error", [None, ValueError("no")])
@played
async def test_one_that_has_ended_is_not_dropped(error: Exception | None) -> None:
    """What comes after its end is its own business."""
    flight, task = make_flight()
    with flight.wanted():
        flight.end(error)
    assert not task.cancelling()
    task.cancel()
    await asyncio.wait({task})


@played
async def test_who_leaves_by_an_error_leaves_all_the_same() -> None:
    """And the error stays what it was."""
    flight, task = make_flight()
    with pytest.raises(ValueError, match="mine"), flight.wanted():
        raise ValueError("mine")
    await asyncio.wait({task})
    assert task.cancelled()


@played
async def test_the_first_word_about_a_pair_counts() -> None:
    """Whatever it was: an answer, that it was given up, or an error."""
    flight, task = make_flight((0, 1, 2))
    a, b, c = (flight.answers[key] for key in KEYS.pairs)
    flight.answer(KEYS.pairs[0], ONE)
    flight.answer(KEYS.pairs[1], None)
    flight.fail(KEYS.pairs[2], ValueError("first"))
    assert flight.unanswered == []
    for key in KEYS.pairs:
        flight.answer(key, TWO)
        flight.answer(key, None)
        flight.fail(key, ValueError("second"))
    assert (a.result(), b.result(), str(c.exception())) == (ONE, None, "first")
    assert [was_given_up(future) for future in (a, b, c)] == [False, True, True]
    task.cancel()


@played
async def test_only_its_own_pairs_are_in_it_and_open_ones_are_unanswered() -> None:
    """By key, in the order of the places."""
    flight, task = make_flight((2, 0))
    assert flight.unanswered == [KEYS.pairs[2], KEYS.pairs[0]]
    flight.answer(KEYS.pairs[2], ONE)
    assert flight.unanswered == [KEYS.pairs[0]]
    assert not was_given_up(flight.answers[KEYS.pairs[0]])
    task.cancel()


@played
async def test_pairs_of_calls_are_under_way() -> None:
    """Those of every call, and of no call that has ended."""
    flight, task = make_flight((0, 1, 2))
    first, second = make_futures(2)
    flight.calls |= {first: [0], second: [1, 2]}
    assert flight.under_way == set(KEYS.pairs)
    del flight.calls[second]
    assert flight.under_way == {KEYS.pairs[0]}
    task.cancel()


@pytest.mark.parametrize(("first", "second"), [(None, ValueError("late")), (ValueError("early"), None)])
@played
async def test_the_first_word_about_the_end_counts(first: Exception | None, second: Exception | None) -> None:
    """True where all went well, None where it failed, with the error beside it."""
    flight, task = make_flight()
    flight.end(first)
    flight.end(second)
    assert flight.error is first
    assert flight.ended.result() is (None if first else True)
    task.cancel()
