"""How fast pairs come back to this process while some are under way."""

from __future__ import annotations

import time

_LEAST_SECONDS = 0.5
_MOST_SECONDS = 4.0


class Pace:
    """Measures while there is work; an idle time ends the measurement, since others may use the Scorers meanwhile."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._pairs = 0.0
        self.pairs_per_second = 0.0

    def begin(self) -> None:
        """Note that pairs go out."""
        if self._since is None:
            self._since = time.monotonic()

    def done(self, pairs: int) -> None:
        """Note that pairs came back."""
        if self._since is None:
            return
        self._pairs += pairs
        now = time.monotonic()
        seconds = now - self._since
        if seconds >= _LEAST_SECONDS:
            self.pairs_per_second = self._pairs / seconds
        if seconds > _MOST_SECONDS:  # the half of it counts on
            self._since, self._pairs = now - seconds / 2, self._pairs / 2

    def end(self) -> None:
        """Note that nothing is under way."""
        self._since, self._pairs, self.pairs_per_second = None, 0.0, 0.0
