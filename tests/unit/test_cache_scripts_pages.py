"""The script that stores, on a real Redis: what is stored is found, its number is bounded, and all of it expires."""

from __future__ import annotations

import pytest
from script_parts import LONG_MS, MINE, PAIRS, THEIRS, YOURS, Scripts, value_of, wait_until

from bento_service.cache import layout
from redis_servers import RedisServer


@pytest.fixture
def scripts(redis_server: RedisServer) -> Scripts:
    """Offer the scripts on an empty Redis."""
    return Scripts(redis_server._control)


def fill_pages(scripts: Scripts, room: int) -> None:
    """Fill all pages, in order; page 3 will be the first to expire, page 0 the last."""
    for page in range(layout.PAGES):
        scripts.settle(PAIRS[page * room : (page + 1) * room], room=room)
        scripts.client.pexpire(scripts.pages[page], LONG_MS * (1 if page == 3 else 10 + layout.PAGES - page))
    assert scripts.sizes() == [room] * layout.PAGES


def test_what_is_stored_is_known_to_everybody(scripts: Scripts) -> None:
    """And its claims are released in the same call."""
    scripts.states(MINE, PAIRS[:3])
    scripts.settle({pair: value_of(pair, number) for number, pair in enumerate(PAIRS[:3])}, PAIRS[:3])
    assert scripts.claim(YOURS, PAIRS[:3]) == ("hhh", [value_of(pair, number) for number, pair in enumerate(PAIRS[:3])], b"")
    assert scripts.claimed() == {}


def test_what_is_known_is_nobody_s_to_compute(scripts: Scripts) -> None:
    """A claim to it, whoever's, ends; others stay."""
    scripts.states(MINE, PAIRS[:2])
    scripts.states(YOURS, PAIRS[2:4])
    scripts.settle([PAIRS[0], PAIRS[2]])
    assert scripts.claimed() == {PAIRS[1]: MINE, PAIRS[3]: YOURS}


def test_the_first_score_stays_unless_it_is_to_be_overwritten(scripts: Scripts) -> None:
    """On whichever page it is, and it stays there."""
    pairs, others = PAIRS[:5], PAIRS[5:8]
    first, second = ({pair: value_of(pair, number) for pair in pairs} for number in (1, 2))
    scripts.settle(first, room=2)
    scripts.settle(second | {pair: value_of(pair) for pair in others}, room=2)
    assert scripts.claim(MINE, pairs) == ("hhhhh", list(first.values()), b"")
    scripts.settle(second, room=2, overwrite=True)
    assert scripts.claim(MINE, pairs) == ("hhhhh", list(second.values()), b"")
    assert scripts.sizes() == [2, 2, 2, 2, 0, 0, 0, 0]


def test_a_page_lives_from_its_first_write_on(scripts: Scripts) -> None:
    """Later writes do not lengthen it: what is never forgotten could never be corrected."""
    scripts.settle(PAIRS[:2], ttl_ms=LONG_MS)
    for overwrite in (False, True):
        scripts.settle(PAIRS[:4], ttl_ms=10 * LONG_MS, overwrite=overwrite)
        assert 0 < scripts.client.pttl(scripts.pages[0]) <= LONG_MS


def test_a_look_up_does_not_lengthen_a_life(scripts: Scripts) -> None:
    """Nor do claims on other pairs of the query; in the end nothing is left."""
    scripts.settle(PAIRS[:2], ttl_ms=60)
    wait_until(lambda: scripts.states(MINE, PAIRS[:1]) == "o", seconds=1.0)
    scripts.settle((), PAIRS[:1])
    assert scripts.client.dbsize() == 0


def test_each_page_has_its_own_end(scripts: Scripts) -> None:
    """Every one of them has one."""
    scripts.settle(PAIRS[:2], ttl_ms=LONG_MS, room=2)
    scripts.settle(PAIRS[2:6], ttl_ms=3 * LONG_MS, room=2)
    lives = [scripts.client.pttl(page) for page in scripts.pages[:3]]
    assert 0 < lives[0] <= LONG_MS < min(lives[1:]) <= max(lives) <= 3 * LONG_MS


def test_a_full_page_spills_to_the_next(scripts: Scripts) -> None:
    """In one call or in several; all of it is found."""
    scripts.settle(PAIRS[:9], room=4)
    assert scripts.sizes() == [4, 4, 1, 0, 0, 0, 0, 0]
    for pair in PAIRS[9:14]:
        scripts.settle([pair], room=4)
    assert scripts.sizes() == [4, 4, 4, 2, 0, 0, 0, 0]
    assert scripts.states(MINE, PAIRS[:15]) == "h" * 14 + "o"


def test_room_that_came_free_is_used_first(scripts: Scripts) -> None:
    """An early page that has expired takes what comes next."""
    scripts.settle(PAIRS[:9], room=4)
    scripts.client.unlink(scripts.pages[0])
    scripts.settle(PAIRS[9:15], room=4)
    assert scripts.sizes() == [4, 4, 3, 0, 0, 0, 0, 0]


def test_when_all_pages_are_full_the_first_to_expire_makes_room(scripts: Scripts) -> None:
    """Only that one; it begins a new life."""
    fill_pages(scripts, 2)
    scripts.settle(PAIRS[16:17], room=2, ttl_ms=5 * LONG_MS)
    assert scripts.sizes() == [2, 2, 2, 1, 2, 2, 2, 2]
    assert scripts.states(MINE, PAIRS[:17]) == "hhhhhhoohhhhhhhhh"
    assert 4 * LONG_MS < scripts.client.pttl(scripts.pages[3]) <= 5 * LONG_MS
    scripts.settle(PAIRS[17:18], room=2)
    assert scripts.sizes() == [2] * layout.PAGES
    scripts.settle(PAIRS[18:19], room=2, ttl_ms=100 * LONG_MS)
    assert scripts.sizes() == [2, 2, 2, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_there_already_needs_no_room(scripts: Scripts, overwrite: bool) -> None:
    """Full pages stay as they are when their own pairs are stored again."""
    fill_pages(scripts, 2)
    scripts.settle({pair: value_of(pair, 2) for pair in PAIRS[:16]}, room=2, overwrite=overwrite)
    assert scripts.claim(MINE, PAIRS[:16])[:2] == ("h" * 16, [value_of(pair, 2 if overwrite else 1) for pair in PAIRS[:16]])
    assert [scripts.client.pttl(page) > 5 * LONG_MS for page in scripts.pages] == [page != 3 for page in range(layout.PAGES)]


def test_an_overfull_page_takes_no_room_from_the_others(scripts: Scripts) -> None:
    """Another release may have had larger pages."""
    scripts.settle(PAIRS[:10], room=10)
    scripts.settle(PAIRS[10:24], room=2)
    assert scripts.sizes() == [10, 2, 2, 2, 2, 2, 2, 2]
    assert scripts.states(MINE, PAIRS[:24]) == "h" * 24


def test_a_call_that_needs_several_pages_makes_room_on_several(scripts: Scripts) -> None:
    """Those that would go first, and never what it has itself just stored."""
    fill_pages(scripts, 2)
    scripts.settle(PAIRS[20:25], room=2)
    assert scripts.states(MINE, PAIRS[20:25]) == "hhhhh"
    assert scripts.sizes() == [2, 2, 2, 2, 2, 2, 2, 1]
    assert scripts.states(MINE, PAIRS[:16]) == "hhhhhhoohhhhoooo"


def test_the_number_of_pairs_of_a_query_is_bounded(scripts: Scripts) -> None:
    """Whatever is stored, in calls smaller or larger than all pages together."""
    for first in range(0, 600, 30):
        scripts.settle(PAIRS[first : first + 30], room=2)
        assert max(scripts.sizes()) <= 2
    scripts.settle(PAIRS[:1], room=2)
    assert scripts.states(MINE, PAIRS[:1]) == "h"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_pair_of_the_page_that_makes_room_is_stored_within_bounds(scripts: Scripts, overwrite: bool) -> None:
    """It was given with the call, so it is known after it; and the page stays in Redis's compact form."""
    fill_pages(scripts, 2)
    scripts.settle([*PAIRS[20:22], *PAIRS[6:8]], room=2, overwrite=overwrite)
    assert max(scripts.sizes()) <= 2
    assert scripts.states(MINE, [*PAIRS[20:22], *PAIRS[6:8]]) == "hhhh"


@pytest.mark.parametrize("make", ["set", "rpush", "sadd"])
def test_rubbish_under_our_names_makes_room(scripts: Scripts, make: str) -> None:
    """A key of another type is replaced, whichever script meets it first."""
    for key in scripts.keys:
        getattr(scripts.client, make)(key, "rubbish")
    assert scripts.states(MINE, PAIRS[:2]) == "oo"
    assert scripts.renew(MINE, PAIRS[:2]) == 2
    for key in scripts.keys:
        scripts.client.unlink(key)
        getattr(scripts.client, make)(key, "rubbish")
    assert scripts.renew(MINE, PAIRS[:2]) == 2
    for key in scripts.keys:
        scripts.client.unlink(key)
        getattr(scripts.client, make)(key, "rubbish")
    assert scripts.settle(PAIRS[:3], PAIRS[:3], room=2) == b""
    assert scripts.sizes() == [2, 1, 0, 0, 0, 0, 0, 0]
    assert scripts.states(YOURS, PAIRS[:4]) == "hhho"
    assert all(scripts.client.pttl(key) > 0 for key in scripts.client.scan_iter())


@pytest.mark.parametrize("value", [b"", b"x", value_of(PAIRS[0])[:-1], value_of(PAIRS[0]) + b"x"])
def test_a_value_of_another_length_counts_as_missing(scripts: Scripts, value: bytes) -> None:
    """It is computed again and written over."""
    scripts.settle(PAIRS[1:2])
    scripts.client.hset(scripts.pages[0], PAIRS[0], value)
    assert scripts.states(MINE, PAIRS[:2]) == "oh"
    scripts.settle(PAIRS[:1], PAIRS[:1])
    assert scripts.claim(MINE, PAIRS[:1]) == ("h", [value_of(PAIRS[0])], b"")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_call_takes_all_pairs_that_redis_keeps_of_a_query(scripts: Scripts, overwrite: bool) -> None:
    """Claims, renews, stores, releases and finds them; all pages are full and compact."""
    assert len(PAIRS) == layout.MOST_PAIRS
    assert scripts.states(MINE, PAIRS) == "o" * layout.MOST_PAIRS
    assert scripts.states(YOURS, PAIRS) == "w" * layout.MOST_PAIRS
    assert scripts.renew(MINE, PAIRS) == layout.MOST_PAIRS
    values = {pair: value_of(pair, number) for number, pair in enumerate(PAIRS)}
    assert scripts.settle(values, PAIRS, overwrite=overwrite) == b""
    assert scripts.claim(THEIRS, PAIRS) == ("h" * layout.MOST_PAIRS, list(values.values()), b"")
    assert scripts.claimed() == {}
    assert scripts.sizes() == [layout.PAGE_PAIRS] * layout.PAGES
    assert {scripts.client.object("encoding", page) for page in scripts.pages} <= {b"ziplist", b"listpack"}


def test_a_store_that_is_refused_leaves_the_claims_of_others() -> None:
    """They still compute what is not known."""
    with RedisServer(maxmemory_policy="noeviction") as server:
        scripts = Scripts(server._control)
        scripts.states(YOURS, PAIRS[:2])
        scripts.states(MINE, PAIRS[2:4])
        server._control.config_set("maxmemory", 1)
        assert b"OOM" in scripts.settle(PAIRS[:4], PAIRS[2:4], MINE)
        assert scripts.claimed() == dict.fromkeys(PAIRS[:2], YOURS)
