"""The tier in this process's memory: bounded, least recently used goes first, nothing older than its time to live."""

from __future__ import annotations

from cachetools import Cache, TTLCache

from bento_service.metrics import EntryMetrics
from bento_service.pairs import KnownScore


class _Entries(TTLCache[bytes, KnownScore]):
    """Counts what leaves."""

    def __init__(self, max_entries: int, ttl_seconds: float, metrics: EntryMetrics) -> None:
        super().__init__(max_entries, ttl_seconds)
        self._metrics = metrics

    @property
    def size(self) -> int:
        """Entries, those included that have outlived their time and wait for a sweep, which len() would drop."""
        return Cache.__len__(self)

    def popitem(self) -> tuple[bytes, KnownScore]:
        """Make room: called by the library when it is full."""
        self._metrics.cache_evictions.labels("full").inc()
        return super().popitem()

    def expire(self, time: float | None = None) -> list[tuple[bytes, KnownScore]]:
        """Drop what is too old: called by the library on each write, and by sweep()."""
        expired = list(super().expire(time))
        if expired:
            self._metrics.cache_evictions.labels("expired").inc(len(expired))
        return expired


class LocalCache:
    """Known scores by pair key.

    max_entries: 0 switches the tier off · ttl_seconds: from the write on; a hit does not lengthen it.
    """

    def __init__(self, *, max_entries: int, ttl_seconds: float, metrics: EntryMetrics) -> None:
        self._entries = _Entries(max_entries, ttl_seconds, metrics) if max_entries else None
        self._metrics = metrics

    def get(self, key: bytes) -> KnownScore | None:
        """Look a pair up."""
        return None if self._entries is None else self._entries.get(key)

    def put(self, key: bytes, known: KnownScore, *, overwrite: bool = False) -> None:
        """Remember a pair; what is there already stays, so that a score does not change while it is cached."""
        if self._entries is None or (not overwrite and key in self._entries):
            return
        self._entries[key] = known

    def sweep(self) -> None:
        """Drop what is too old, which otherwise waits for the next write."""
        if self._entries is not None:
            self._entries.expire()

    def clear(self) -> None:
        """Forget everything."""
        if self._entries is not None:
            self._entries.clear()

    def report_size(self) -> None:
        """Set the metric."""
        if self._entries is not None:
            self._metrics.cache_entries.set(self._entries.size)
