"""The load that benchmarks put on a server: percentiles, arrivals, and the loops against a small real server."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from loops import Bodies, Endpoint, arrivals, closed_loop, open_loop, percentile

FAILS_AFTER = 6


class Ranker(BaseHTTPRequestHandler):
    """Answers the first 6 requests, the others with 503."""

    protocol_version = "HTTP/1.1"
    bodies: list[bytes]

    def do_POST(self) -> None:
        """Keep the body; answer as the service does."""
        self.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        answer = json.dumps({"results": [], "usage": {"total_tokens": 7}}).encode()
        self.send_response(200 if len(self.bodies) <= FAILS_AFTER else 503)
        self.send_header("content-length", str(len(answer)))
        self.send_header("x-cache-hits", "1")
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture
def ranker() -> Iterator[tuple[Endpoint, list[bytes]]]:
    """Run the small server; the bodies it gets."""
    handler = type("Handler", (Ranker,), {"bodies": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Endpoint(server.server_address[1], "/rerank"), handler.bodies
        finally:
            server.shutdown()
            thread.join(10)


def test_a_percentile_is_a_value_that_was_measured() -> None:
    """Nearest rank: p99 of 100 is the 99th, of fewer the greatest; nothing has none."""
    assert percentile(range(1, 101), 0.99) == 99
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3.0
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.0
    assert percentile([5.0], 0.0) == 5.0
    assert math.isnan(percentile([], 0.5))


def test_arrivals_are_as_many_as_asked_within_the_window() -> None:
    """In order, and the same for the same seed."""
    times = arrivals(50, 7.0, seed=1)
    assert len(times) == 50
    assert times == sorted(times)
    assert 0 <= times[0] < times[-1] <= 7.0
    assert times == arrivals(50, 7.0, seed=1) != arrivals(50, 7.0, seed=2)


def test_no_body_comes_twice() -> None:
    """Neither among those made beforehand nor after them; the same seed gives the same ones."""
    bodies = Bodies(3, documents=2, ready=2)
    taken = [bodies.take() for _ in range(5)]
    assert len(set(taken)) == 5
    assert taken[0] == Bodies(3, documents=2, ready=0).take()
    assert len(json.loads(taken[4])["documents"]) == 2


def test_a_closed_loop_counts_what_was_answered_and_what_failed(ranker: tuple[Endpoint, list[bytes]]) -> None:
    """A failed request has no latency and no share in the rate."""
    endpoint, seen = ranker
    window = closed_loop(endpoint, Bodies(1, 2, 0), clients=2, seconds=0.2)
    assert len(window.latencies) == FAILS_AFTER
    assert len(window.failures) == len(seen) - FAILS_AFTER > 0
    assert window.failures[0].startswith("503: ")
    assert (window.tokens, window.cached) == (7 * FAILS_AFTER, FAILS_AFTER)
    assert window.requests_per_second == FAILS_AFTER / window.seconds
    assert sum(window.latencies) <= 2 * window.seconds  # a client waits for one answer at a time
    assert len(set(seen)) == len(seen)


def test_an_open_loop_sends_what_was_offered(ranker: tuple[Endpoint, list[bytes]]) -> None:
    """Rate times seconds; at least one."""
    endpoint, seen = ranker
    assert len(open_loop(endpoint, Bodies(1, 2, 9), requests_per_second=20, seconds=0.2, seed=1).latencies) == 4
    assert len(open_loop(endpoint, Bodies(2, 2, 9), requests_per_second=0, seconds=0.1, seed=1).latencies) == 1
    assert len(seen) == 5


def test_a_server_that_is_gone_fails_every_request() -> None:
    """Each is counted, and the rate is 0."""
    window = open_loop(Endpoint(1), Bodies(1, 2, 0), requests_per_second=30, seconds=0.1, seed=1)
    assert window.failures == ["ConnectionRefusedError"] * 3
    assert window.requests_per_second == 0
