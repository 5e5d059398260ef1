"""Load on a rerank endpoint: a closed loop of clients and an open loop of arrivals (standard library only).

Every request is new text, so no cache can answer it. All started requests are waited for, each at most 120 s.
"""

from __future__ import annotations

import http.client
import json
import math
import random
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from texts import Texts

TIMEOUT_SECONDS = 120.0


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank: the smallest value that at least this share of all are no greater than; NaN of nothing."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else math.nan


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server on this machine takes `{"query", "documents"}`."""

    port: int
    path: str = "/v2/rerank"


class Bodies:
    """Request bodies of new text; `ready` of them are made beforehand, further ones when they are asked for."""

    def __init__(self, seed: int, documents: int, ready: int) -> None:
        self._texts = Texts(seed)
        self._documents = documents
        self._lock = threading.Lock()
        self._ready = deque(self._make() for _ in range(ready))

    def take(self) -> bytes:
        """Return one that nobody has had."""
        with self._lock:
            return self._ready.popleft() if self._ready else self._make()

    def _make(self) -> bytes:
        query, documents = self._texts.request(self._documents)
        return json.dumps({"query": query, "documents": documents}).encode()


@dataclass(slots=True)
class Window:
    """What a stretch of load saw. latencies: in seconds · seconds: from its begin to the last good answer."""

    latencies: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    tokens: int = 0
    cached: int = 0
    seconds: float = 0.0
    _begin: float = field(default_factory=time.perf_counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def age(self) -> float:
        """Seconds since its begin."""
        return time.perf_counter() - self._begin

    @property
    def requests_per_second(self) -> float:
        """Good answers over the time they took; 0 where there are none."""
        return len(self.latencies) / self.seconds if self.latencies else 0.0

    def send(self, connection: http.client.HTTPConnection, path: str, body: bytes, due: float) -> None:
        """Send a request and keep what came of it. due: its latency counts from here, in seconds of the window's age."""
        try:
            connection.request("POST", path, body, {"content-type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            with self._lock:
                self.failures.append(type(error).__name__)
            return
        with self._lock:
            if response.status != http.client.OK:
                self.failures.append(f"{response.status}: {answer[:200].decode(errors='replace')}")
                return
            self.seconds = self.age
            self.latencies.append(self.seconds - due)
            self.tokens += json.loads(answer).get("usage", {}).get("total_tokens", 0)
            self.cached += int(response.getheader("x-cache-hits", "0"))


def closed_loop(endpoint: Endpoint, bodies: Bodies, *, clients: int, seconds: float) -> Window:
    """Let each client send its next request when it has its answer, until `seconds` have passed."""
    window = Window()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=TIMEOUT_SECONDS)
        while (start := window.age) < seconds:
            window.send(connection, endpoint.path, bodies.take(), start)
        connection.close()

    _run([threading.Thread(target=client) for _ in range(clients)])
    return window


def arrivals(count: int, seconds: float, seed: int) -> list[float]:
    """Times at which requests arrive, in order: those of a Poisson process that has `count` arrivals within `seconds`."""
    draw = random.Random(seed)
    return sorted(draw.uniform(0, seconds) for _ in range(count))


def open_loop(endpoint: Endpoint, bodies: Bodies, *, requests_per_second: float, seconds: float, seed: int) -> Window:
    """Send requests when they are due, whatever has become of the earlier ones; a late start counts as latency."""
    times = arrivals(max(1, round(requests_per_second * seconds)), seconds, seed)
    window = Window()

    def visitor(due: float) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=TIMEOUT_SECONDS)
        body = bodies.take()
        time.sleep(max(0.0, due - window.age))
        window.send(connection, endpoint.path, body, due)
        connection.close()

    _run([threading.Thread(target=visitor, args=(due,)) for due in times])
    return window


def _run(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
