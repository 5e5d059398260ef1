"""One API key gets no more than its share."""

from __future__ import annotations

import pytest

from bento_service.errors import KeyBusy
from bento_service.quota import Quota


def quota(max_pairs: int = 100, seconds: float = 2.5) -> Quota:
    """Make one whose pairs take as long as one says."""
    return Quota(max_pairs, lambda _: seconds)


def test_a_key_that_has_its_share_in_flight_is_busy_until_some_of_it_is_answered() -> None:
    """With the seconds that the rest takes."""
    limits = quota()
    with limits.hold("a", 60):
        with limits.hold("a", 40), pytest.raises(KeyBusy) as failure, limits.hold("a", 1):
            pass
        assert failure.value.retry_after_seconds == 3
        with limits.hold("a", 40):
            pass


def test_other_keys_have_shares_of_their_own() -> None:
    """One key cannot keep out another."""
    limits = quota()
    with limits.hold("a", 100), limits.hold("b", 100):
        pass


def test_a_request_over_the_limit_passes_while_nothing_else_is_in_flight() -> None:
    """It would never pass otherwise."""
    limits = quota()
    with limits.hold("a", 1000), pytest.raises(KeyBusy), limits.hold("a", 1):
        pass
    with limits.hold("a", 1000):
        pass


def test_without_keys_nothing_is_counted() -> None:
    """The queue's own bound is for all callers together."""
    limits = quota()
    with limits.hold(None, 1000), limits.hold(None, 1000):
        pass
    assert not limits._pairs


def test_what_failed_is_given_back_and_nothing_is_left_of_a_key() -> None:
    """Memory does not grow with the keys seen."""
    limits = quota()
    with pytest.raises(ZeroDivisionError), limits.hold("a", 5):
        raise ZeroDivisionError
    assert not limits._pairs


@pytest.mark.parametrize(("seconds", "told"), [(0.0, 1), (0.2, 1), (59.5, 60), (1e9, 60)])
def test_retry_after_is_between_a_second_and_a_minute(seconds: float, told: int) -> None:
    """Whatever is estimated."""
    limits = quota(seconds=seconds)
    with limits.hold("a", 100), pytest.raises(KeyBusy) as failure, limits.hold("a", 1):
        pass
    assert failure.value.retry_after_seconds == told
