"""The script that renews claims, on a real Redis: an owner keeps what it computes, and hears of what it has lost."""

from __future__ import annotations

import pytest
from script_parts import LONG_MS, MINE, PAIRS, THEIRS, YOURS, Scripts, wait_until

from bento_service.cache import layout
from redis_servers import RedisServer

LEASE_MS = 50


@pytest.fixture
def scripts(redis_server: RedisServer) -> Scripts:
    """Offer the scripts on an empty Redis."""
    return Scripts(redis_server._control)


def times_of(scripts: Scripts, pair: bytes) -> list[int]:
    """Read when a claim began, when it ends, and when the pair went to a Scorer."""
    return [int(time) for time in scripts.client.hget(scripts.claims, pair)[layout.TOKEN_BYTES :].split(b":")]


def test_renewing_does_not_make_a_claim_younger(scripts: Scripts) -> None:
    """An owner that hangs and renews for ever would hold everybody up."""
    scripts.states(THEIRS, PAIRS[:1])

    def taken_over() -> bool:
        assert scripts.renew(THEIRS, PAIRS[:1]) == 1
        return scripts.states(MINE, PAIRS[:1], most_age_ms=LEASE_MS) == "o"

    assert wait_until(taken_over) > 0.8 * LEASE_MS / 1000
    assert scripts.renew(THEIRS, PAIRS[:1]) == 0
    assert scripts.claimed() == {PAIRS[0]: MINE}


def test_renewing_lengthens_what_is_ours_alone(scripts: Scripts) -> None:
    """Leases, and with them the life of the key."""
    scripts.states(MINE, PAIRS[:2])
    scripts.states(YOURS, PAIRS[2:3])
    before = scripts.client.hgetall(scripts.claims)
    assert scripts.renew(MINE, PAIRS[:3], 10 * LONG_MS) == 2
    after = scripts.client.hgetall(scripts.claims)
    assert after[PAIRS[2]] == before[PAIRS[2]]
    assert set(after) == set(PAIRS[:3])
    for pair in PAIRS[:2]:
        (begun, ends, _), (same, later, _) = (claims[pair][layout.TOKEN_BYTES :].split(b":") for claims in (before, after))
        assert begun == same
        assert 9 * LONG_MS <= int(later) - int(ends) < 10 * LONG_MS
    assert scripts.client.pttl(scripts.claims) > 9 * LONG_MS


def test_renewing_what_has_gone_claims_it_again_unless_it_is_known(scripts: Scripts) -> None:
    """Redis was restarted, or somebody else has computed the pair."""
    scripts.settle(PAIRS[2:3])
    assert scripts.renew(MINE, PAIRS[:3]) == 2
    assert scripts.states(YOURS, PAIRS[:3]) == "wwh"
    assert 0 < scripts.client.pttl(scripts.claims) <= LONG_MS


@pytest.mark.parametrize(
    ("sent_ago", "most", "state"), [(5, 0, "w"), (5, 20_000, "w"), (LONG_MS + 1, 0, "o"), (LONG_MS + 1, LONG_MS * 2, "w")]
)
def test_what_is_with_a_scorer_is_waited_for_a_lease_or_longer(scripts: Scripts, sent_ago: int, most: int, state: str) -> None:
    """It will be there soon; but a Scorer that hangs holds nobody up for ever."""
    scripts.write_claim(PAIRS[0], THEIRS, begun_ago_ms=10 * LONG_MS, ends_in_ms=LONG_MS - 10, sent_ago_ms=sent_ago)
    assert scripts.states(MINE, PAIRS[:1], most_age_ms=most) == state


def test_an_owner_tells_what_has_gone_to_its_scorer(scripts: Scripts) -> None:
    """When it renews; the first time counts."""
    scripts.states(MINE, PAIRS[:2])
    for _ in range(2):
        assert scripts.renew(MINE, PAIRS[:2], under_way="10") == 2
    assert scripts.states(YOURS, PAIRS[:2], most_age_ms=0) == "wo"
    sent = [claim.rpartition(b":")[2] for claim in scripts.client.hgetall(scripts.claims).values()]
    assert sorted(number == b"0" for number in sent) == [False, True]


def test_the_time_a_pair_went_to_its_scorer_is_told_once(scripts: Scripts) -> None:
    """Later renewals move the end alone; a pair that came back unscored is with no Scorer any more."""
    scripts.states(MINE, PAIRS[:1])
    scripts.renew(MINE, PAIRS[:1], under_way="1")
    first = times_of(scripts, PAIRS[0])
    wait_until(lambda: scripts.renew(MINE, PAIRS[:1], under_way="1") and times_of(scripts, PAIRS[0])[1] > first[1] + 5)
    begun, _, sent = times_of(scripts, PAIRS[0])
    assert [begun, sent] == [first[0], first[2]]
    assert 0 < begun <= sent
    scripts.renew(MINE, PAIRS[:1], under_way="0")
    assert times_of(scripts, PAIRS[0])[2] == 0


def test_what_is_claimed_again_is_still_with_its_scorer(scripts: Scripts) -> None:
    """After a restart of Redis, which has forgotten all claims."""
    assert scripts.renew(MINE, PAIRS[:2], under_way="01") == 2
    waiting, sent = (times_of(scripts, pair) for pair in PAIRS[:2])
    assert waiting[2] == 0
    assert sent[0] == sent[2] > 0
    assert scripts.states(YOURS, PAIRS[:2], most_age_ms=0) == "ow"
