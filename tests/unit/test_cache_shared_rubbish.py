"""The tier in Redis when what it finds or hears is rubbish: computed and written over, and never an error."""

from __future__ import annotations

import math

import pytest
from cache_parts import FINGERPRINT, answering, draws, look_up, make_keys, score_of, scores_of, sharing
from parts import played

from bento_service.cache import layout
from bento_service.cache.shared import Claim
from bento_service.metrics import EntryMetrics
from bento_service.pairs import KnownScore
from redis_servers import RedisServer

FIFTY, TEN = make_keys(50), make_keys(10)
ALONE = Claim(owned=list(range(10)))
AGE = 60.0


@played
async def test_garbage_of_the_right_length_is_computed_and_written_over(
    redis_server: RedisServer, entry_metrics: EntryMetrics
) -> None:
    """Random bytes, another pair's value, and what is no number; their neighbours stay known."""
    drawn = draws(29)
    nan = layout.pack_value(FIFTY.pairs[4], KnownScore(math.nan, 1, truncated=False))
    rubbish = {2: drawn.randbytes(layout.VALUE_BYTES), 3: layout.pack_value(FIFTY.pairs[5], score_of(5)), 4: nan}
    async with sharing(redis_server.url, entry_metrics) as shared:
        token = shared.new_token()
        await shared.settle(FIFTY, scores_of(FIFTY), (), token)
        page = layout.query_keys(FINGERPRINT, FIFTY.query)[1]
        redis_server._control.hset(page, mapping={FIFTY.pairs[place]: value for place, value in rubbish.items()})
        claim = await shared.claim(FIFTY, range(50), token, most_age_seconds=AGE)
        assert claim.known == {place: score_of(place) for place in range(50) if place not in rubbish}
        assert (sorted(claim.owned), claim.foreign) == ([2, 3, 4], [])
        await shared.settle(FIFTY, {FIFTY.pairs[place]: score_of(place) for place in rubbish}, FIFTY.pairs, token)
        assert len((await shared.claim(FIFTY, range(50), token, most_age_seconds=AGE)).known) == 50
        await shared.settle(FIFTY, {FIFTY.pairs[3]: score_of(4)}, (), token)
        assert (await shared.claim(FIFTY, [3], token, most_age_seconds=AGE)).known == {3: score_of(3)}


@pytest.mark.parametrize(
    "answer",
    [
        b"+OK\r\n",
        b":1\r\n",
        b"_\r\n",
        b"*0\r\n",
        b"*3\r\n+ooooooooo\r\n+\r\n+\r\n",
        b"*3\r\n+hhhhhhhhhh\r\n+rubbish\r\n+\r\n",
        b"*3\r\n+xxxxxxxxxx\r\n+\r\n+\r\n",
        b"*3\r\n:1\r\n:2\r\n:3\r\n",
        b"*3\r\n_\r\n_\r\n_\r\n",
    ],
)
@played
async def test_whatever_is_answered_every_pair_is_somebody_s(answer: bytes, entry_metrics: EntryMetrics) -> None:
    """Something that speaks as Redis does, and is none, costs a look-up and never a request."""
    async with answering(answer) as url, sharing(url, entry_metrics) as shared:
        for _ in range(5):
            claim = await look_up(shared, TEN)
            assert (sorted(claim.owned), claim.known, claim.foreign) == (list(range(10)), {}, [])
            await shared.settle(TEN, scores_of(TEN), TEN.pairs, b"looks it up!")
            await shared.renew(TEN, TEN.pairs, (), b"looks it up!")


@played
async def test_what_answers_rubbish_is_left_alone(entry_metrics: EntryMetrics) -> None:
    """As one that does not answer: three times are enough."""
    async with answering(b"*0\r\n") as url, sharing(url, entry_metrics) as shared:
        for _ in range(3):
            assert await look_up(shared, TEN) == ALONE
        assert shared.state == "open"


@played
async def test_rubbish_in_a_report_is_no_error(entry_metrics: EntryMetrics) -> None:
    """A health page says what it can."""
    async with answering(b"*0\r\n") as url, sharing(url, entry_metrics) as shared:
        assert (await shared.statistics())["cached_entries"] == 0
