"""The scripts for claims, on a real Redis: one owner a pair, for as long as it lives and not for ever."""

from __future__ import annotations

import asyncio

import pytest
from cache_parts import FINGERPRINT, connected, draws
from parts import played
from script_parts import LONG_MS, MINE, PAIRS, QUERY, THEIRS, YOURS, Scripts, value_of, wait_until

from bento_service.cache import layout
from redis_servers import RedisServer

LEASE_MS = 50


@pytest.fixture
def scripts(redis_server: RedisServer) -> Scripts:
    """Offer the scripts on an empty Redis."""
    return Scripts(redis_server._control)


def test_a_pair_nobody_knows_is_the_asker_s_and_then_nobody_else_s(scripts: Scripts) -> None:
    """The first who asks computes; the others wait."""
    assert scripts.claim(MINE, PAIRS[:3]) == ("ooo", [], b"")
    assert scripts.claim(YOURS, PAIRS[1:5]) == ("wwoo", [], b"")
    assert scripts.claim(THEIRS, PAIRS[:6]) == ("wwwwwo", [], b"")
    assert scripts.claimed() == {**dict.fromkeys(PAIRS[:3], MINE), **dict.fromkeys(PAIRS[3:5], YOURS), PAIRS[5]: THEIRS}


def test_known_pairs_come_with_their_values_in_the_order_asked(scripts: Scripts) -> None:
    """Among others, which keep their places."""
    values = {pair: value_of(pair, number) for number, pair in enumerate(PAIRS[:4])}
    scripts.settle(values)
    asked = [PAIRS[3], PAIRS[9], PAIRS[0], PAIRS[8], PAIRS[1]]
    assert scripts.claim(MINE, asked) == ("hohoh", [values[PAIRS[3]], values[PAIRS[0]], values[PAIRS[1]]], b"")
    assert scripts.claimed() == dict.fromkeys([PAIRS[9], PAIRS[8]], MINE)


def test_asking_for_nothing_writes_nothing(scripts: Scripts) -> None:
    """Neither does asking for what is known, or for what others compute."""
    assert scripts.claim(MINE, []) == ("", [], b"")
    assert (scripts.settle(), scripts.renew(MINE, [])) == (b"", 0)
    scripts.settle(PAIRS[:1])
    assert scripts.states(MINE, PAIRS[:1]) == "h"
    assert scripts.client.keys() == [scripts.pages[0].encode()]


def test_an_owner_who_asks_again_owns_still(scripts: Scripts) -> None:
    """It does not wait for itself."""
    assert [scripts.states(MINE, PAIRS[:2]) for _ in range(2)] == ["oo", "oo"]
    assert scripts.states(YOURS, PAIRS[:2]) == "ww"


def test_the_end_of_its_lease_frees_a_pair(scripts: Scripts) -> None:
    """A dead owner holds it up no longer, and others' leases are their own."""
    scripts.states(MINE, PAIRS[:1], lease_ms=LEASE_MS)
    scripts.states(THEIRS, PAIRS[1:2])
    took = wait_until(lambda: scripts.states(YOURS, PAIRS[:1]) == "o")
    assert took > 0.8 * LEASE_MS / 1000
    assert scripts.states(YOURS, PAIRS[1:2]) == "w"
    assert scripts.claimed() == {PAIRS[0]: YOURS, PAIRS[1]: THEIRS}


@played
async def test_exactly_one_of_many_takes_over_an_expired_claim(redis_server: RedisServer, scripts: Scripts) -> None:
    """At once, on connections of their own; all others wait for that one."""
    for pair in PAIRS[:20]:
        scripts.write_claim(pair, THEIRS, begun_ago_ms=5000, ends_in_ms=-1)
    async with connected(redis_server.url) as connection:
        tokens = [number.to_bytes(layout.TOKEN_BYTES, "big") for number in range(32)]
        blob = b"".join(PAIRS[:20])
        answers = await asyncio.gather(
            *(connection.run_script(layout.CLAIM, scripts.keys, (token, LONG_MS, LONG_MS, blob)) for token in tokens)
        )
    assert sorted(states for states, _, _ in answers) == [b"o" * 20] + [b"w" * 20] * 31
    winner = next(token for token, (states, _, _) in zip(tokens, answers, strict=True) if states[0] == ord("o"))
    assert set(scripts.claimed().values()) == {winner}


@pytest.mark.parametrize(("ago", "most", "state"), [(1000, 900, "o"), (1000, 20_000, "w"), (0, 0, "o")])
def test_a_claim_of_some_age_is_taken_over_from_a_living_owner(scripts: Scripts, ago: int, most: int, state: str) -> None:
    """Who asks says how long is too long for it."""
    scripts.write_claim(PAIRS[0], THEIRS, begun_ago_ms=ago, ends_in_ms=LONG_MS)
    assert scripts.states(MINE, PAIRS[:1], most_age_ms=most) == state


def test_a_claim_that_ends_later_than_a_lease_is_none(scripts: Scripts) -> None:
    """Somebody set the clock back: nobody waits until it has caught up."""
    scripts.write_claim(PAIRS[0], THEIRS, begun_ago_ms=0, ends_in_ms=10 * LONG_MS)
    scripts.write_claim(PAIRS[1], THEIRS, begun_ago_ms=0, ends_in_ms=LONG_MS)
    assert scripts.states(MINE, PAIRS[:2]) == "ow"


@pytest.mark.parametrize("ahead", [{"begun_ago_ms": -5000}, {"begun_ago_ms": 0, "sent_ago_ms": -5000}])
def test_a_claim_that_begins_later_than_now_is_none(scripts: Scripts, ahead: dict[str, int]) -> None:
    """As little as one that was with a Scorer later than now."""
    scripts.write_claim(PAIRS[0], THEIRS, ends_in_ms=LONG_MS // 2, **ahead)
    assert scripts.states(MINE, PAIRS[:1]) == "o"


def test_only_its_owner_releases_a_claim(scripts: Scripts) -> None:
    """A known fault of an earlier design: a lock was deleted by whoever was late."""
    scripts.states(MINE, PAIRS[:2])
    scripts.states(YOURS, PAIRS[2:4])
    assert scripts.settle((), PAIRS[:5], YOURS) == b""
    assert scripts.claimed() == dict.fromkeys(PAIRS[:2], MINE)
    assert scripts.states(THEIRS, PAIRS[:4]) == "wwoo"


def test_an_owner_whose_claim_was_taken_over_releases_it_no_more(scripts: Scripts) -> None:
    """Its score is stored all the same, and then nobody needs to compute the pair any more."""
    scripts.states(MINE, PAIRS[:1])
    assert scripts.states(YOURS, PAIRS[:1], most_age_ms=0) == "o"
    scripts.settle((), PAIRS[:1], MINE)
    assert scripts.claimed() == {PAIRS[0]: YOURS}
    scripts.settle(PAIRS[:1], PAIRS[:1], MINE)
    assert scripts.states(THEIRS, PAIRS[:1]) == "h"
    assert scripts.renew(YOURS, PAIRS[:1]) == 0
    assert scripts.claimed() == {}


def test_a_token_is_compared_as_a_whole(scripts: Scripts) -> None:
    """One that begins or ends alike is another's."""
    likes = [MINE[:-1] + b"x", b"x" + MINE[1:]]
    scripts.states(MINE, PAIRS[:1])
    for like in likes:
        scripts.settle((), PAIRS[:1], like)
        assert scripts.renew(like, PAIRS[:1]) == 0
        assert scripts.states(like, PAIRS[:1]) == "w"


def test_the_last_release_leaves_nothing(scripts: Scripts) -> None:
    """No empty key remains."""
    scripts.states(MINE, PAIRS[:2])
    scripts.settle((), PAIRS[:2])
    assert scripts.client.dbsize() == 0


def test_claims_vanish_by_themselves(scripts: Scripts) -> None:
    """A query whose owners have died leaves no key behind; the last lease decides."""
    for token, pairs, lease_ms in ((MINE, PAIRS[:5], LONG_MS), (YOURS, PAIRS[5:6], 3 * LONG_MS)):
        scripts.states(token, pairs, lease_ms=lease_ms)
        assert lease_ms - LONG_MS < scripts.client.pttl(scripts.claims) <= lease_ms
    scripts.states(THEIRS, PAIRS[6:7], lease_ms=LEASE_MS)
    wait_until(lambda: scripts.client.dbsize() == 0)


@pytest.mark.parametrize(
    "claim", [b"", b"x", MINE, YOURS, YOURS + b"1:", YOURS + b"1:2", YOURS + b"1:2:3:4", YOURS + b"a:b:c", b"\xff" * 40]
)
def test_a_claim_that_cannot_be_read_is_taken_over(scripts: Scripts, claim: bytes) -> None:
    """Whoever wrote it."""
    scripts.client.hset(scripts.claims, PAIRS[0], claim)
    assert scripts.states(MINE, PAIRS[:1]) == "o"
    assert scripts.renew(MINE, PAIRS[:1]) == 1
    assert scripts.states(YOURS, PAIRS[:1]) == "w"


def test_another_query_or_model_has_claims_of_its_own(scripts: Scripts) -> None:
    """Its keys are others."""
    keys = layout.query_keys(FINGERPRINT[::-1], QUERY.query)
    assert not set(keys) & set(scripts.keys)
    scripts.states(MINE, PAIRS[:1])
    scripts.keys = keys
    assert scripts.states(YOURS, PAIRS[:1]) == "o"


def test_any_sequence_of_calls_agrees_with_a_simple_model(scripts: Scripts) -> None:
    """Claims, stores, releases and overwriting by three owners, at random."""
    drawn = draws(11)
    stored: dict[bytes, bytes] = {}
    owners: dict[bytes, bytes] = {}
    for step in range(400):
        token, pairs = drawn.choice([MINE, YOURS, THEIRS]), drawn.sample(PAIRS[:40], drawn.randint(1, 12))
        if drawn.random() < 0.5:
            states = "".join("h" if pair in stored else "w" if owners.get(pair, token) != token else "o" for pair in pairs)
            values = [stored[pair] for pair in pairs if pair in stored]
            assert scripts.claim(token, pairs) == (states, values, b"")
            owners |= {pair: token for pair, state in zip(pairs, states, strict=True) if state == "o"}
        else:
            values, overwrite = [value_of(pair, step) for pair in pairs], drawn.random() < 0.3
            given = dict(zip(pairs[:4], values[:4], strict=False))
            assert scripts.settle(given, pairs, token, room=7, overwrite=overwrite) == b""
            stored = stored | given if overwrite else given | stored
            owners = {
                pair: owner for pair, owner in owners.items() if pair not in given and (pair not in pairs or owner != token)
            }
        assert scripts.claimed() == owners
    assert len(stored) == 40
