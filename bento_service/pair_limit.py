"""How many pairs the queue takes: a fixed number, or one that follows the measured latency.

Down at once to what proved too much, up step by step, as TCP finds the width of a path (V. Jacobson, Congestion Avoidance and Control, 1988).
"""

from __future__ import annotations

import time

LEAST_PAIRS = 32
_DECREASE, _INCREASE = 0.9, 0.1
_USED = 0.5  # of the limit: where less of it is in use, a short latency says nothing about more


class PairLimit:
    """The limit of one process.

    most: never above it · target_seconds: from when a request joins the queue to its first scores, to be kept; None for a fixed limit.
    """

    def __init__(self, most: int, *, target_seconds: float | None = None) -> None:
        self._most = most
        self._target_seconds = target_seconds
        self._pairs = float(most)
        self._decreased = -float("inf")

    @property
    def pairs(self) -> int:
        """The limit now."""
        return int(self._pairs)

    def observe(self, seconds: float, *, queued_pairs: int, pairs: int) -> None:
        """Learn from first scores. queued_pairs: that were in the queue with the request when it came · pairs: scored."""
        if self._target_seconds is None:
            return
        if seconds <= self._target_seconds:
            if queued_pairs >= _USED * self._pairs:
                step = max(LEAST_PAIRS, _INCREASE * self._pairs)
                self._pairs = min(self._most, self._pairs + step * pairs / self._pairs)
            return
        if queued_pairs <= LEAST_PAIRS:
            return  # it was not the queue that made it late
        now = time.monotonic()
        # Once for each latency's length: what is late by then came before the limit went down.
        if now - self._decreased > seconds:
            self._decreased = now
            self._pairs = max(float(min(LEAST_PAIRS, self._most)), _DECREASE * min(self._pairs, queued_pairs))
