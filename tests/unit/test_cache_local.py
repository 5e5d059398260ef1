"""The tier in memory: bounded, forgets by age and by use, and never changes what it holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cache_parts import Clock, draws, score_of, value_of

from bento_service.cache.local import LocalCache
from bento_service.metrics import EntryMetrics
from bento_service.pairs import KnownScore

TTL_SECONDS = 300.0
MakeCache = Callable[..., LocalCache]


@pytest.fixture
def clock() -> Clock:
    """Let the test decide what time it is."""
    return Clock()


@pytest.fixture
def make_cache(entry_metrics: EntryMetrics, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> MakeCache:
    """Offer caches whose time is the clock's."""

    def make(max_entries: int = 3, ttl_seconds: float = TTL_SECONDS) -> LocalCache:
        made = LocalCache(max_entries=max_entries, ttl_seconds=ttl_seconds, metrics=entry_metrics)
        if made._entries is not None:
            monkeypatch.setattr(made._entries.timer, "_Timer__timer", clock.monotonic)
        return made

    return make


def key_of(number: int) -> bytes:
    """Make a pair's key."""
    return number.to_bytes(16, "little")


def fill(cache: LocalCache, *numbers: int, **options: Any) -> None:
    """Remember each number's score under its key."""
    for number in numbers:
        cache.put(key_of(number), score_of(number), **options)


def known(cache: LocalCache, count: int = 10) -> list[int]:
    """Find which numbers are remembered, each with its own score; asking counts as use."""
    found = {number: cache.get(key_of(number)) for number in range(count)}
    assert all(score in (None, score_of(number)) for number, score in found.items())
    return [number for number, score in found.items() if score is not None]


def evictions(metrics: EntryMetrics) -> tuple[float, float]:
    """Read how many went because there was no room, and because of their age."""
    return value_of(metrics.cache_evictions.labels("full")), value_of(metrics.cache_evictions.labels("expired"))


@pytest.mark.parametrize("raw", [0.0, -0.0, -1.0])
def test_a_score_of_zero_is_a_score(make_cache: MakeCache, raw: float) -> None:
    """Nothing falsy about it: it is found, and is no reason to compute again."""
    cache = make_cache()
    score = KnownScore(raw, 0, truncated=False)
    cache.put(key_of(1), score)
    found = cache.get(key_of(1))
    assert found
    assert str(found.raw) == str(raw)
    cache.put(key_of(1), KnownScore(5.0, 5, truncated=True))
    assert cache.get(key_of(1)) == score


def test_the_least_recently_used_goes_first(make_cache: MakeCache, entry_metrics: EntryMetrics) -> None:
    """A hit is a use; so is a put, of what is new."""
    cache = make_cache(3)
    fill(cache, 1, 2, 3)
    assert cache.get(key_of(1))
    fill(cache, 4)
    assert known(cache) == [1, 3, 4]
    assert cache.get(key_of(1))
    fill(cache, 5, 6)
    assert known(cache) == [1, 5, 6]
    assert evictions(entry_metrics) == (3, 0)


def test_it_never_holds_more_than_it_may(make_cache: MakeCache, entry_metrics: EntryMetrics) -> None:
    """Whatever is asked of it; and what it counts adds up."""
    cache, drawn = make_cache(20), draws(7)
    added = 0
    for _ in range(3000):
        number = drawn.randrange(60)
        if cache.get(key_of(number)) is None:
            added += 1
            fill(cache, number)
        assert len(cache._entries or ()) <= 20
    assert len(known(cache, 60)) == 20
    assert evictions(entry_metrics) == (added - 20, 0)


def test_a_pair_is_forgotten_at_its_age(make_cache: MakeCache, clock: Clock) -> None:
    """And not a moment before."""
    cache = make_cache()
    fill(cache, 1)
    clock.now += TTL_SECONDS - 0.001
    assert known(cache) == [1]
    clock.now += 0.001
    assert known(cache) == []


def test_a_hit_does_not_lengthen_a_life(make_cache: MakeCache, clock: Clock) -> None:
    """Nor does a put of what is there: the operator's bound is on the age of a score."""
    cache = make_cache()
    fill(cache, 1)
    for _ in range(3):
        clock.now += TTL_SECONDS / 4
        assert known(cache) == [1]
        fill(cache, 1)
    clock.now += TTL_SECONDS / 4
    assert known(cache) == []


def test_a_pair_that_was_forgotten_can_be_learnt_again(make_cache: MakeCache, clock: Clock) -> None:
    """With a life of its own, and the score of its time."""
    cache = make_cache()
    fill(cache, 1)
    clock.now += TTL_SECONDS
    cache.put(key_of(1), score_of(2))
    clock.now += TTL_SECONDS - 1
    assert cache.get(key_of(1)) == score_of(2)


def test_the_first_score_stays(make_cache: MakeCache, clock: Clock, entry_metrics: EntryMetrics) -> None:
    """A score does not change while it is cached, unless a caller asked for a new one, which needs no room and has a new life."""
    cache = make_cache(2)
    fill(cache, 0)
    cache.put(key_of(1), score_of(1))
    cache.put(key_of(1), score_of(2))
    assert cache.get(key_of(1)) == score_of(1)
    clock.now += TTL_SECONDS - 1
    cache.put(key_of(1), score_of(3), overwrite=True)
    assert evictions(entry_metrics) == (0, 0)
    clock.now += TTL_SECONDS - 1
    assert (cache.get(key_of(0)), cache.get(key_of(1))) == (None, score_of(3))


def test_a_hit_cannot_change_what_is_cached(make_cache: MakeCache) -> None:
    """A known fault of an earlier design: two requests shared one mutable result."""
    cache = make_cache()
    fill(cache, 1)
    found: Any = cache.get(key_of(1))
    for name in found._fields:
        with pytest.raises(AttributeError):
            setattr(found, name, 99)
    with pytest.raises(AttributeError):
        found.rank = 1
    with pytest.raises(TypeError):
        found[0] = 99.0
    assert cache.get(key_of(1)) == score_of(1)


def test_a_cache_of_no_entries_is_off(make_cache: MakeCache, entry_metrics: EntryMetrics) -> None:
    """Everything can still be asked of it."""
    cache = make_cache(0)
    fill(cache, 1, 2)
    fill(cache, 1, overwrite=True)
    assert known(cache) == []
    cache.sweep()
    cache.clear()
    cache.report_size()
    assert evictions(entry_metrics) == (0, 0)
    assert value_of(entry_metrics.cache_entries) == 0


def test_a_sweep_drops_what_is_too_old_and_counts_it(make_cache: MakeCache, clock: Clock, entry_metrics: EntryMetrics) -> None:
    """Each pair once, and nothing that still lives."""
    cache = make_cache(5)
    fill(cache, 1, 2)
    clock.now += 1
    fill(cache, 3)
    cache.sweep()
    assert evictions(entry_metrics) == (0, 0)
    clock.now += TTL_SECONDS - 1
    cache.sweep()
    cache.sweep()
    assert evictions(entry_metrics) == (0, 2)
    assert known(cache) == [3]


def test_what_is_too_old_makes_room_before_what_lives(make_cache: MakeCache, clock: Clock, entry_metrics: EntryMetrics) -> None:
    """Each write sweeps, so the bound drops nothing that is alive while something dead is there."""
    cache = make_cache(3)
    fill(cache, 1)
    clock.now += TTL_SECONDS / 2
    fill(cache, 2, 3)
    assert cache.get(key_of(1))
    clock.now += TTL_SECONDS / 2
    fill(cache, 4)
    assert known(cache) == [2, 3, 4]
    assert evictions(entry_metrics) == (0, 1)


def test_clearing_forgets_everything_and_counts_no_eviction(make_cache: MakeCache, entry_metrics: EntryMetrics) -> None:
    """It can be filled again at once."""
    cache = make_cache(3)
    fill(cache, 1, 2, 3)
    cache.clear()
    assert known(cache) == []
    fill(cache, 4, 5)
    assert known(cache) == [4, 5]
    assert evictions(entry_metrics) == (0, 0)


def test_its_size_is_reported(make_cache: MakeCache, clock: Clock, entry_metrics: EntryMetrics) -> None:
    """With what is too old until it is swept: reporting does not sweep."""
    cache = make_cache(3)
    sizes = []
    for change in (lambda: fill(cache, 1, 2), lambda: fill(cache, 3, 4), cache.clear, lambda: fill(cache, 5)):
        change()
        cache.report_size()
        sizes.append(value_of(entry_metrics.cache_entries))
    clock.now += TTL_SECONDS
    for change in (lambda: None, cache.sweep):
        change()
        cache.report_size()
        sizes.append(value_of(entry_metrics.cache_entries))
    assert sizes == [2, 3, 0, 1, 1, 0]
