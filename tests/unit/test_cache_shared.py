"""The tier in Redis: what one server stores is every server's, in one round trip a look-up and one a store."""

from __future__ import annotations

import dataclasses

import pytest
from cache_parts import FINGERPRINT, OTHER_FINGERPRINT, calls_of, draws, make_keys, score_of, scores_of, sharing, value_of
from parts import played

from bento_service.cache import layout
from bento_service.cache.shared import Claim, SharedCache
from bento_service.metrics import EntryMetrics
from bento_service.pairs import KnownScore
from redis_servers import RedisServer

FIFTY = make_keys(50)
SCORES = scores_of(FIFTY)
AGE = 60.0


@played
async def test_what_one_server_stores_every_server_knows(redis_server: RedisServer, entry_metrics: EntryMetrics) -> None:
    """The first owns all pairs, a second waits for them, and then both know them, bit for bit."""
    async with sharing(redis_server.url, entry_metrics) as one, sharing(redis_server.url, entry_metrics) as other:
        mine, theirs = one.new_token(), other.new_token()
        assert await one.claim(FIFTY, range(50), mine, most_age_seconds=AGE) == Claim(owned=list(range(50)))
        assert await other.claim(FIFTY, range(50), theirs, most_age_seconds=AGE) == Claim(foreign=list(range(50)))
        await one.settle(FIFTY, SCORES, FIFTY.pairs, mine)
        for server in (one, other):
            claim = await server.claim(FIFTY, range(50), theirs, most_age_seconds=AGE)
            assert claim == Claim(known=dict(enumerate(SCORES.values())))
            assert all(type(known) is KnownScore for known in claim.known.values())
        assert redis_server._control.exists(layout.query_keys(FINGERPRINT, FIFTY.query)[0]) == 0


@played
async def test_of_fifty_pairs_forty_eight_may_be_known(redis_server: RedisServer, entry_metrics: EntryMetrics) -> None:
    """The other two alone are to be computed, wherever they stand."""
    async with sharing(redis_server.url, entry_metrics) as shared:
        known = {pair: score for pair, score in SCORES.items() if pair not in (FIFTY.pairs[7], FIFTY.pairs[49])}
        await shared.settle(FIFTY, known, (), shared.new_token())
        claim = await shared.claim(FIFTY, range(50), shared.new_token(), most_age_seconds=AGE)
        assert claim.known == {place: score_of(place) for place in range(50) if place not in (7, 49)}
        assert (claim.owned, claim.foreign) == ([7, 49], [])


@played
async def test_any_places_may_be_asked_for_in_any_order(redis_server: RedisServer, entry_metrics: EntryMetrics) -> None:
    """Known, owned and foreign ones mixed: none is lost, doubled or taken for another."""
    drawn = draws(23)
    async with sharing(redis_server.url, entry_metrics) as shared:
        for number in range(40):
            keys = make_keys(60, f"query {number}")
            places = drawn.sample(range(60), 60)
            stored, foreign = places[: drawn.randrange(60)], places[40 : drawn.randrange(40, 60)]
            await shared.settle(keys, {keys.pairs[place]: score_of(place) for place in stored}, (), b"t" * 12)
            await shared.claim(keys, foreign, b"t" * 12, most_age_seconds=AGE)
            asked = drawn.sample(range(60), drawn.randrange(60))
            claim = await shared.claim(keys, asked, shared.new_token(), most_age_seconds=AGE)
            assert claim.known == {place: score_of(place) for place in asked if place in stored}
            assert sorted(claim.foreign) == sorted(set(asked) & set(foreign) - set(stored))
            assert sorted([*claim.known, *claim.owned, *claim.foreign]) == sorted(asked)


@played
async def test_a_look_up_is_one_round_trip_and_so_is_a_store(redis_server: RedisServer, entry_metrics: EntryMetrics) -> None:
    """However many pairs it is about; the script itself is sent once."""
    async with sharing(redis_server.url, entry_metrics) as shared:
        first, later = [(1, 0), (1, 1), (1, 1)], [(1, 0)] * 3
        for keys, expected in ((make_keys(1, "first"), first), (FIFTY, later), (make_keys(1000), later)):
            token = shared.new_token()
            trips = []
            for step in (
                shared.claim(keys, range(len(keys.pairs)), token, most_age_seconds=AGE),
                shared.settle(keys, scores_of(keys), keys.pairs, token),
                shared.renew(keys, keys.pairs, (), token),
            ):
                before = calls_of(redis_server)
                await step
                after = calls_of(redis_server)
                trips.append(tuple(after.get(name, 0) - before.get(name, 0) for name in ("evalsha", "eval")))
                assert {"hgetall", "get", "mget", "multi", "ping"}.isdisjoint(after)
            assert trips == expected


@played
async def test_the_first_score_stays_unless_a_caller_wants_another(
    redis_server: RedisServer, entry_metrics: EntryMetrics
) -> None:
    """So a score does not change while it is cached."""
    pair = FIFTY.pairs[0]
    async with sharing(redis_server.url, entry_metrics) as shared:
        found = []
        for number, overwrite in ((1, False), (2, False), (3, True), (4, False)):
            await shared.settle(FIFTY, {pair: score_of(number)}, (), shared.new_token(), overwrite=overwrite)
            found.append((await shared.claim(FIFTY, [0], shared.new_token(), most_age_seconds=AGE)).known[0])
        assert found == [score_of(number) for number in (1, 1, 3, 3)]


@played
async def test_a_zero_is_known(redis_server: RedisServer, entry_metrics: EntryMetrics) -> None:
    """Of a score and of a count."""
    zero = KnownScore(0.0, 0, truncated=False)
    async with sharing(redis_server.url, entry_metrics) as shared:
        await shared.settle(FIFTY, {FIFTY.pairs[0]: zero}, (), shared.new_token())
        assert (await shared.claim(FIFTY, [0], shared.new_token(), most_age_seconds=AGE)).known == {0: zero}


@played
async def test_more_pairs_than_redis_keeps_of_a_query_are_the_asker_s(
    redis_server: RedisServer, entry_metrics: EntryMetrics
) -> None:
    """All are answered for; those beyond are stored by nobody."""
    keys = make_keys(9000)
    beyond = list(range(layout.MOST_PAIRS, len(keys.pairs)))
    async with sharing(redis_server.url, entry_metrics) as shared:
        token = shared.new_token()
        claim = await shared.claim(keys, range(len(keys.pairs)), token, most_age_seconds=AGE)
        assert (sorted(claim.owned), claim.known, claim.foreign) == (list(range(len(keys.pairs))), {}, [])
        await shared.renew(keys, keys.pairs, (), token)
        await shared.settle(keys, scores_of(keys), keys.pairs, token)
        claim = await shared.claim(keys, range(len(keys.pairs)), token, most_age_seconds=AGE)
        assert (len(claim.known), claim.owned, claim.foreign) == (layout.MOST_PAIRS, beyond, [])
        assert value_of(entry_metrics.redis_errors.labels("response")) == 0


@played
async def test_a_claim_that_is_renewed_outlives_its_lease(
    redis_server: RedisServer, entry_metrics: EntryMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is not does not; and one may be too old for who asks."""
    claims = layout.query_keys(FINGERPRINT, FIFTY.query)[0]
    async with sharing(redis_server.url, entry_metrics) as shared:
        mine, yours = shared.new_token(), shared.new_token()
        await shared.claim(FIFTY, range(2), mine, most_age_seconds=AGE)
        assert 1000 < redis_server._control.pttl(claims) <= 2000
        monkeypatch.setattr("bento_service.cache.shared.LEASE_SECONDS", 60.0)
        await shared.renew(FIFTY, FIFTY.pairs[:1], (), mine)
        assert redis_server._control.pttl(claims) > 50_000
        redis_server._control.hset(claims, FIFTY.pairs[1], mine + b"1:2")
        assert (await shared.claim(FIFTY, range(2), yours, most_age_seconds=AGE)) == Claim(owned=[1], foreign=[0])
        assert (await shared.claim(FIFTY, range(2), yours, most_age_seconds=0.0)) == Claim(owned=[0, 1])


@played
async def test_an_owner_hears_what_it_need_not_compute(redis_server: RedisServer, entry_metrics: EntryMetrics) -> None:
    """Pairs that somebody else has stored or taken over; one that is with its Scorer is not taken over for a lease."""
    async with sharing(redis_server.url, entry_metrics) as shared:
        mine, yours = shared.new_token(), shared.new_token()
        await shared.claim(FIFTY, range(4), mine, most_age_seconds=AGE)
        assert await shared.renew(FIFTY, FIFTY.pairs[:4], FIFTY.pairs[2:3], mine) == set()
        await shared.settle(FIFTY, {FIFTY.pairs[0]: score_of(0)}, (), yours)
        claim = await shared.claim(FIFTY, range(1, 3), yours, most_age_seconds=0.0)
        assert claim == Claim(owned=[1], foreign=[2])
        assert await shared.renew(FIFTY, FIFTY.pairs[:4], FIFTY.pairs[2:3], mine) == set(FIFTY.pairs[:2])


@played
async def test_queries_and_models_do_not_meet(redis_server: RedisServer, entry_metrics: EntryMetrics) -> None:
    """Even where the first digits of two fingerprints are the same, or a pair's key is."""
    others = [make_keys(50, "another"), FIFTY.under(OTHER_FINGERPRINT), FIFTY.under(FINGERPRINT[:-1] + "0")]
    async with sharing(redis_server.url, entry_metrics) as shared:
        await shared.settle(FIFTY, SCORES, (), shared.new_token())
        for keys in [*others, dataclasses.replace(others[0], pairs=FIFTY.pairs)]:
            claim = await shared.claim(keys, range(50), shared.new_token(), most_age_seconds=AGE)
            assert (claim.known, len(claim.owned)) == ({}, 50)
            await shared.settle(keys, {}, keys.pairs, b"x" * 12)


@played
async def test_what_is_stored_lives_as_long_as_it_is_told_to(redis_server: RedisServer, entry_metrics: EntryMetrics) -> None:
    """A fraction of a millisecond is the least."""
    async with sharing(redis_server.url, entry_metrics, ttl_seconds=1234.5) as shared:
        await shared.settle(FIFTY, SCORES, (), shared.new_token())
        (page,) = redis_server._control.keys()
        assert 1_230_000 < redis_server._control.pttl(page) <= 1_234_500
    redis_server._control.flushall()
    async with sharing(redis_server.url, entry_metrics, ttl_seconds=0.0001) as shared:
        await shared.settle(FIFTY, SCORES, (), shared.new_token())
        assert shared.state == "closed"


def test_no_two_owners_have_one_token(entry_metrics: EntryMetrics) -> None:
    """Neither of one process nor of several."""
    caches = [SharedCache(None, ttl_seconds=1, metrics=entry_metrics) for _ in range(50)]
    tokens = [cache.new_token() for cache in caches for _ in range(200)]
    assert len(set(tokens)) == len(tokens)
    assert {len(token) for token in tokens} == {layout.TOKEN_BYTES}
