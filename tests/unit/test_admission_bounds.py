"""Admission's bounds in requests and seconds: who is turned away, when, and with which Retry-After."""

from __future__ import annotations

import asyncio
import time

import pytest
from parts import FakeLink, ask, assert_idle, make_admission, played

from bento_service.admission import Place
from bento_service.errors import DeadlinePassed, QueueFull, QueueTimeout, ScorerDown
from bento_service.metrics import EntryMetrics


@pytest.mark.parametrize("requests", [0, 1, 3])
@played
async def test_as_many_requests_wait_as_are_allowed(entry_metrics: EntryMetrics, requests: int) -> None:
    """One more is turned away at once; what is under way does not count, however many pairs of it still wait."""
    link = FakeLink(pairs_per_second=20)  # shared by two entry workers
    admission = make_admission(entry_metrics, link, requests=requests)
    big = ask(admission, 64)
    call = await link.calls.get()
    waiting = [ask(admission, 1, 100 + number) for number in range(requests)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match="too many requests") as caught:
        await ask(admission, 1)
    assert not isinstance(caught.value, QueueTimeout)
    assert caught.value.retry_after_seconds == 4  # until the 32 under way have come back
    link.calls.put_nowait(call)
    for _ in range(2 + requests):
        await link.answer()
    await asyncio.gather(big, *waiting)
    assert_idle(admission, entry_metrics)


@played
async def test_where_slots_are_taken_a_place_among_those_that_wait_is_free_when_a_request_ends(
    entry_metrics: EntryMetrics,
) -> None:
    """As Retry-After says to who is turned away."""
    link = FakeLink(pairs_per_second=20)  # shared by two entry workers
    admission = make_admission(entry_metrics, link, requests=1, parallel=1)
    big, other = ask(admission, 100), ask(admission, 60, 1000)
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match="too many requests") as caught:
        await ask(admission, 1)
    assert caught.value.retry_after_seconds == 8  # half of the 160 pairs, of which 10 come back in a second
    for each in (big, other):
        each.cancel()
    await link.answer()
    await asyncio.wait([big, other])


@played
async def test_a_place_among_those_that_wait_is_free_again_when_one_begins(entry_metrics: EntryMetrics) -> None:
    """And when one that waits goes away."""
    link = FakeLink()
    admission = make_admission(entry_metrics, link, requests=1)
    first = ask(admission, 32)
    call = await link.calls.get()
    second = ask(admission, 32, 100)
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await ask(admission, 1)
    second.cancel()
    await asyncio.wait([second])
    third = ask(admission, 32, 200)
    await asyncio.sleep(0)
    link.calls.put_nowait(call)
    await link.answer()
    next_call = await link.calls.get()
    fourth = ask(admission, 32, 300)
    await asyncio.sleep(0)
    link.calls.put_nowait(next_call)
    assert [(await link.answer())[0], (await link.answer())[0]] == [200, 300]
    await asyncio.gather(first, third, fourth)
    assert_idle(admission, entry_metrics)


@pytest.mark.parametrize(("parallel", "under_way"), [(None, 3), (1, 1), (2, 2)])
@played
async def test_as_many_requests_are_computed_at_once_as_are_allowed(
    entry_metrics: EntryMetrics, parallel: int | None, under_way: int
) -> None:
    """However much room the Scorer has; the next begins when one ends."""
    link = FakeLink(batch_pairs=1000)
    admission = make_admission(entry_metrics, link, parallel=parallel)
    asked = [ask(admission, 1, number) for number in range(3)]
    for _ in range(10):
        await asyncio.sleep(0)
    assert link.calls.qsize() == under_way
    assert [await link.answer() for _ in range(3)] == [[0], [1], [2]]
    await asyncio.gather(*asked)
    assert_idle(admission, entry_metrics)


@pytest.mark.parametrize("parallel", [None, 1])
@played
async def test_who_has_waited_too_long_is_turned_away(entry_metrics: EntryMetrics, parallel: int | None) -> None:
    """With nothing of it sent; what is under way goes on, and so does who comes later."""
    link = FakeLink()
    admission = make_admission(entry_metrics, link, parallel=parallel, wait_seconds=0.05)
    first = ask(admission, 64)
    call = await link.calls.get()
    with pytest.raises(QueueTimeout) as caught:
        await ask(admission, 1, 100)
    assert caught.value.code == "queue_timeout"
    assert caught.value.retry_after_seconds == 1
    link.calls.put_nowait(call)
    assert [(await link.answer())[0], (await link.answer())[0]] == [0, 32]  # longer than that, but it has begun
    await first
    last = ask(admission, 1, 200)
    assert await link.answer() == [200]
    await last
    assert_idle(admission, entry_metrics)


@pytest.mark.parametrize(
    ("pairs_per_second", "seconds", "retry_after"), [(10.0, 11.2, None), (10.0, 3.0, 9), (10.0, 11.0, 1), (0.0, 3.0, None)]
)
@played
async def test_who_would_wait_too_long_is_turned_away_at_once(
    entry_metrics: EntryMetrics, pairs_per_second: float, seconds: float, retry_after: int | None
) -> None:
    """By the measured speed, and told when the queue will be short enough; before a speed is known everybody may wait."""
    link = FakeLink(pairs_per_second=2 * pairs_per_second)
    admission = make_admission(entry_metrics, link, wait_seconds=seconds)
    # 95 pairs stand before a newcomer's first call: 32 under way, the big one's next 32, and the 31 of the other; 16 fill its batch.
    ahead = [ask(admission, 320), ask(admission, 31, 1000)]
    link.pairs_per_second, known = 0.0, link.pairs_per_second
    call = await link.calls.get()
    link.pairs_per_second = known
    if retry_after is None:
        newcomer = ask(admission, 1, 2000)
        await asyncio.sleep(0)
        assert admission._waiting_requests == 2
        newcomer.cancel()
    else:
        with pytest.raises(QueueTimeout) as caught:
            await ask(admission, 1, 2000)
        assert caught.value.retry_after_seconds == retry_after
    for each in ahead:
        each.cancel()
    await asyncio.wait(ahead)
    link.calls.put_nowait(call)
    await link.answer()
    await asyncio.wait(admission._calls)
    assert_idle(admission, entry_metrics)


@played
async def test_the_deadline_is_not_the_queue_s_time_out(entry_metrics: EntryMetrics) -> None:
    """Whichever comes first is told."""
    link = FakeLink()
    admission = make_admission(entry_metrics, link, wait_seconds=60)
    first = ask(admission, 32)
    call = await link.calls.get()
    with pytest.raises(DeadlinePassed):
        await ask(admission, 1, 100, seconds=0.05)
    link.calls.put_nowait(call)
    await link.answer()
    await first
    assert_idle(admission, entry_metrics)


@played
async def test_a_slot_comes_back_on_every_way_out(entry_metrics: EntryMetrics) -> None:
    """A caller that goes away while it waits or while it is computed, a failed call, a Scorer that went away."""
    link = FakeLink()
    admission = make_admission(entry_metrics, link, parallel=1)
    first, waiting = ask(admission, 32), ask(admission, 32, 100)
    _, end = await link.calls.get()
    waiting.cancel()
    first.cancel()
    await asyncio.wait([first, waiting])
    second = ask(admission, 32, 200)
    end.set_exception(ScorerDown("gone"))
    _, end = await link.calls.get()
    end.set_exception(ScorerDown("gone"))
    with pytest.raises(ScorerDown):
        await second
    link.up = False
    with pytest.raises(ScorerDown):
        await ask(admission, 1)
    link.up = True
    third = ask(admission, 32, 300)
    await link.answer()
    await third
    assert_idle(admission, entry_metrics)


@played
async def test_a_free_slot_is_not_waited_for(entry_metrics: EntryMetrics) -> None:
    """However many pairs the request in the other slot has."""
    link = FakeLink(pairs_per_second=20)
    admission = make_admission(entry_metrics, link, workers=1, parallel=2, wait_seconds=9)
    big = ask(admission, 1000)
    call = await link.calls.get()
    small = ask(admission, 8, 5000)
    await asyncio.sleep(0)
    assert admission._waiting_requests == 1
    link.calls.put_nowait(call)
    while not small.done():
        await link.answer()
        await asyncio.sleep(0)
    big.cancel()
    await asyncio.wait([big])


@played
async def test_a_request_of_several_queries_is_let_in_once_and_holds_one_slot(entry_metrics: EntryMetrics) -> None:
    """Also when all that it had queued is answered before its next query comes."""
    link = FakeLink(batch_pairs=1000)
    admission = make_admission(entry_metrics, link, workers=1, parallel=1, requests=0, wait_seconds=5)
    place = Place()

    async def query(start: int) -> list[float]:
        blobs = [str(number).encode() for number in range(start, start + 2)]
        with admission.place_for(2, place):
            return [score.raw for score in await admission.score(blobs, deadline=time.monotonic() + 60, place=place)]

    first = [asyncio.create_task(query(start)) for start in (0, 10)]
    for _ in first:
        await link.answer()
    assert await asyncio.gather(*first) == [[0, 1], [10, 11]]
    other = ask(admission, 1, 500)
    call = await link.calls.get()
    again = asyncio.create_task(query(20))
    await asyncio.sleep(0)
    assert not again.done()
    link.calls.put_nowait(call)
    await link.answer()
    await other
    await link.answer()
    assert await again == [20, 21]
    assert_idle(admission, entry_metrics)
