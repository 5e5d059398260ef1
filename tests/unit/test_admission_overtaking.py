"""Admission: a small request joins the waiting batch, however big those before it are, and keeps nobody waiting for ever."""

from __future__ import annotations

import asyncio

from parts import FakeLink, ask, assert_idle, make_admission, played

from bento_service.metrics import EntryMetrics


@played
async def test_a_small_request_finds_room_beside_a_big_one(entry_metrics: EntryMetrics) -> None:
    """A part of what may be under way is kept from a big request's later calls."""
    link = FakeLink(batch_pairs=128)
    admission = make_admission(entry_metrics, link, workers=1)
    big = ask(admission, 1000)
    await asyncio.sleep(0)
    calls = [await link.calls.get() for _ in range(7)]
    assert link.calls.empty()  # 224 of the 256 that may be under way
    small = ask(admission, 10, 5000)
    numbers, end = await link.calls.get()
    assert numbers == list(range(5000, 5010))
    link.calls.put_nowait((numbers, end))
    await link.answer()
    await small
    for call in calls:
        link.calls.put_nowait(call)
    for _ in range(32):  # 1000 pairs in calls of 32
        await link.answer()
    await big
    assert_idle(admission, entry_metrics)


@played
async def test_small_requests_do_not_keep_a_big_one_waiting(entry_metrics: EntryMetrics) -> None:
    """Once a call's worth of them has overtaken its next call, that comes first."""
    link = FakeLink(batch_pairs=64)
    admission = make_admission(entry_metrics, link, workers=1)
    big = ask(admission, 160)
    await asyncio.sleep(0)
    calls = [await link.calls.get() for _ in range(3)]
    small = [ask(admission, 8, 1000 * number) for number in range(1, 7)]
    await asyncio.sleep(0)
    overtakers = [await link.calls.get() for _ in range(4)]
    assert link.calls.empty()
    for call in overtakers:
        link.calls.put_nowait(call)
        await link.answer()
        await asyncio.sleep(0)
    assert link.calls.empty()  # there is room for the other two, but it is the big one's turn
    link.calls.put_nowait(calls[0])
    await link.answer()
    assert (await link.calls.get())[0] == list(range(96, 128))
    for each in (big, *small):
        each.cancel()
    for call in calls[1:]:
        link.calls.put_nowait(call)
        await link.answer()
    await asyncio.wait([big, *small])
