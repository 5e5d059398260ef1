"""A circuit breaker: after a few failures in a row nobody asks any more, until a probe of its own has been answered."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable


class State(enum.StrEnum):
    """closed: asked · open: not asked · half_open: one probe is under way, and nobody else asks."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Begins open, so that the first probe decides.

    failures: in a row that open it · first_pause_seconds, longest_pause_seconds: from opening to the next probe, doubled each time a
    probe fails or the peer fails again soon after one · on_change: called with the new state.
    """

    def __init__(
        self,
        *,
        failures: int,
        first_pause_seconds: float,
        longest_pause_seconds: float,
        on_change: Callable[[State], None] = lambda _: None,
    ) -> None:
        self._most_failures = failures
        self._first_pause_seconds = first_pause_seconds
        self._longest_pause_seconds = longest_pause_seconds
        self._on_change = on_change
        self._failures = 0
        self._pause_seconds = first_pause_seconds
        self._next_probe = time.monotonic()
        self._closed_at = float("-inf")
        self.state = State.OPEN

    @property
    def closed(self) -> bool:
        """Whether calls may go out."""
        return self.state is State.CLOSED

    def probe_due(self) -> bool:
        """Become half-open if it is time for a probe; the caller then makes one and says how it went."""
        if self.state is not State.OPEN or time.monotonic() < self._next_probe:
            return False
        self._become(State.HALF_OPEN)
        return True

    def worked(self) -> None:
        """A call or a probe was answered."""
        self._failures = 0
        if self.state is State.HALF_OPEN:
            self._closed_at = time.monotonic()
            self._become(State.CLOSED)

    def failed(self) -> None:
        """A call or a probe was not answered."""
        self._failures += 1
        if self.state is State.HALF_OPEN or (self.state is State.CLOSED and self._failures >= self._most_failures):
            soon = time.monotonic() - self._closed_at < 2 * self._longest_pause_seconds
            again = self.state is State.HALF_OPEN or soon
            self._pause_seconds = (
                min(self._longest_pause_seconds, 2 * self._pause_seconds) if again else self._first_pause_seconds
            )
            self._next_probe = time.monotonic() + self._pause_seconds
            self._failures = 0
            self._become(State.OPEN)

    def _become(self, state: State) -> None:
        self.state = state
        self._on_change(state)
