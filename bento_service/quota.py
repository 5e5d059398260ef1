"""How much of the service one API key may have at a time."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator

from bento_service.errors import KeyBusy

_LONGEST_SECONDS = 60


class Quota:
    """Bounds the pairs that each key has in flight in this process.

    max_pairs: of one key · seconds_for: estimates how long so many pairs take.
    """

    def __init__(self, max_pairs: int, seconds_for: Callable[[int], float]) -> None:
        self._max_pairs = max_pairs
        self._seconds_for = seconds_for
        self._pairs: Counter[str] = Counter()

    @contextlib.contextmanager
    def hold(self, owner: str | None, pairs: int) -> Iterator[None]:
        """Count a request's pairs, known ones included, until it is answered; owner: of the key, None where none is asked for.

        Raises KeyBusy where they are too many; a request that is too big by itself passes while nothing else is in flight.
        """
        if owner is None:
            yield
            return
        held = self._pairs[owner]
        if held and held + pairs > self._max_pairs:
            seconds = self._seconds_for(held + pairs - self._max_pairs)
            raise KeyBusy(
                "this API key has too many documents in flight: try again after Retry-After seconds",
                retry_after_seconds=max(1, min(_LONGEST_SECONDS, math.ceil(seconds))),
            )
        self._pairs[owner] += pairs
        try:
            yield
        finally:
            self._pairs[owner] -= pairs
            if self._pairs[owner] <= 0:
                del self._pairs[owner]
