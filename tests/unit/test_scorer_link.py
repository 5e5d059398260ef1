"""The link to a Scorer: up only when trained, down as soon as it is known, and no call that hangs."""

from __future__ import annotations

import asyncio

import pytest
from link_parts import SCORE, WARM, FakeClient, watched
from parts import played

from bento_service.errors import ScorerDown, ScorerFailed
from bento_service.scorer_link import WARM_UP_CALLS, ScorerLink

pytestmark = pytest.mark.usefixtures("short_beats")


@played
async def test_a_scorer_is_up_after_a_dozen_training_calls() -> None:
    """Only then does it get a caller's pairs, and its speed is known."""
    client = FakeClient()
    last = asyncio.Event()
    client.script = [*[[SCORE.pack()]] * (WARM_UP_CALLS - 1), last]
    async with watched(client) as (link, changes):
        await client.waits.wait()
        assert not link.up
        with pytest.raises(ScorerDown):
            await link.score([b"early"])
        last.set()
        assert await changes.get() is True
        assert client.calls == [[WARM]] * WARM_UP_CALLS
        assert await link.score([b"a", b"b"]) == [SCORE, SCORE]
        assert (link.batch_pairs, link.pairs_per_second, link.gone_seconds) == (64, 100.0, 0.0)


@played
async def test_a_scorer_never_heard_of_has_no_speed() -> None:
    """And is not gone, because it has never been there."""
    link = ScorerLink(FakeClient(), warm_up=WARM, silence_seconds=1, hang_seconds=1)
    assert (link.up, link.batch_pairs, link.pairs_per_second, link.gone_seconds) == (False, 1, 0.0, 0.0)


@pytest.mark.parametrize("error", [ConnectionError(), RuntimeError("500"), TimeoutError(), ValueError()], ids=repr)
@played
async def test_the_watch_survives_whatever_a_heartbeat_raises(error: Exception) -> None:
    """It comes up as soon as the heartbeat answers."""
    client = FakeClient()
    client.heart = error
    async with watched(client) as (link, changes):
        for _ in range(3):
            await client.heartbeats.get()
        assert not link.up
        client.heart = None
        assert await changes.get() is True


@played
async def test_training_that_fails_begins_anew() -> None:
    """A Scorer that cannot score is not up."""
    client = FakeClient()
    client.script = [[SCORE.pack()], RuntimeError("500")]
    async with watched(client) as (_, changes):
        assert await changes.get() is True
        assert len(client.calls) == 2 + WARM_UP_CALLS


@played
async def test_a_call_is_repeated_once_on_a_broken_connection() -> None:
    """Scoring again gives the same."""
    client = FakeClient()
    async with watched(client) as (link, changes):
        await changes.get()
        client.calls.clear()
        client.script = [ConnectionResetError()]
        assert await link.score([b"a"]) == [SCORE]
        assert client.calls == [[b"a"], [b"a"]]


@played
async def test_a_connection_that_breaks_twice_is_an_answer() -> None:
    """No third try; the Scorer still counts as up, since its process runs."""
    client = FakeClient()
    async with watched(client) as (link, changes):
        await changes.get()
        client.calls.clear()
        client.script = [ConnectionResetError(), ConnectionResetError()]
        with pytest.raises(ScorerDown) as caught:
            await link.score([b"a"])
        assert caught.value.retry_after_seconds
        assert (len(client.calls), link.up) == (2, True)


@pytest.mark.parametrize("answers", [[], [SCORE.pack()], [SCORE.pack()] * 3])
@played
async def test_another_number_of_answers_is_a_failure(answers: list[bytes]) -> None:
    """Scores must not slip to other documents."""
    client = FakeClient()
    async with watched(client) as (link, changes):
        await changes.get()
        client.script = [answers]
        with pytest.raises(ScorerFailed):
            await link.score([b"a", b"b"])


@played
async def test_an_error_of_the_scorer_is_told_without_its_words() -> None:
    """They are in the log, and the Scorer stays up."""
    client = FakeClient()
    async with watched(client) as (link, changes):
        await changes.get()
        client.script = [RuntimeError("xyzzy")]
        with pytest.raises(ScorerFailed) as caught:
            await link.score([b"a"])
        assert "xyzzy" not in caught.value.message
        assert await link.score([b"a"]) == [SCORE]


@played
async def test_starting_and_stopping_twice_is_once() -> None:
    """And nothing runs on."""
    before = asyncio.all_tasks()
    async with watched(FakeClient()) as (link, changes):
        started = asyncio.all_tasks()
        link.start()
        assert before < asyncio.all_tasks() == started
        await changes.get()
        await link.stop()
        await link.stop()
        assert asyncio.all_tasks() == before
