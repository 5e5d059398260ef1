"""SIGTERM to a real server under load: what it took is answered, and it ends in time."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from cache_calls import serving
from servers import Server
from texts import Texts

pytestmark = pytest.mark.alone

DRAIN_SECONDS = 1.5


@dataclass(frozen=True)
class Seen:
    """One exchange. sent: on time.monotonic(), before its first byte · status: 0 where the connection was refused or reset."""

    sent: float
    status: int
    code: str | None
    connection: str | None


def ask(server: Server, seen: list[Seen], query: str, documents: list[str]) -> None:
    """Send one request on a connection of its own and note what came of it."""
    sent = time.monotonic()
    try:
        answer = server.post(query=query, documents=documents, timeout=60)
    except httpx.TransportError:
        seen.append(Seen(sent, 0, None, None))
        return
    code = None if answer.is_success else answer.json()["error"]["code"]
    seen.append(Seen(sent, answer.status_code, code, answer.headers.get("connection")))


@pytest.fixture(scope="module")
def servers(builtin_tag: str) -> Iterator[list[Server]]:
    """Start one for each test, side by side: one with two entry workers, and one."""
    assert builtin_tag
    home = Path(os.environ["BENTOML_HOME"])
    with serving(*(Server(home, RERANKER_DRAIN_SECONDS=DRAIN_SECONDS, RERANKER_WORKERS=workers) for workers in (2, 1))) as both:
        yield both


def test_sigterm_answers_what_was_taken_and_takes_no_more_after_the_drain_period(servers: list[Server]) -> None:
    """/readyz is off at once, small requests are taken meanwhile, a big one is finished after it, new ones get 503, exit 0."""
    server = servers[0]
    texts, big, small = Texts(7), [], []
    begun = time.monotonic()
    ask(server, [], *texts.request(64))
    pairs_per_second = 64 / (time.monotonic() - begun)
    # Seconds of work, so that it outlasts the drain period.
    slow = threading.Thread(target=ask, args=(server, big, *texts.request(min(1000, int(5 * pairs_per_second)))))
    slow.start()
    while not server.get("/health").json()["requests"]["active"]:
        time.sleep(0.02)
    server.process.send_signal(signal.SIGTERM)
    signalled = time.monotonic()
    while server.get("/readyz").is_success:
        assert time.monotonic() - signalled < 1
    assert server.get("/health").json()["status"] == "draining"
    while slow.is_alive() and server.process.poll() is None:
        ask(server, small, *texts.request(1))
    slow.join(30)
    assert server.wait_exit(30) == 0

    assert [each.status for each in big] == [200]
    taken = [each for each in small if each.sent < signalled + DRAIN_SECONDS]
    late = [each for each in small if each.sent > signalled + DRAIN_SECONDS + 1]
    assert taken
    assert {(each.status, each.connection) for each in taken} == {(200, "close")}
    assert late
    assert {(each.status, each.code) for each in late} <= {(503, "shutting_down"), (0, None)}


def test_a_server_that_was_idle_serves_whoever_comes_while_it_drains(servers: list[Server]) -> None:
    """Entry workers need new connections to the Scorer then; nothing is left running afterwards."""
    server = servers[1]
    texts, seen = Texts(8), []
    workers = server.workers("Scorer") + server.workers("Reranker")
    server.process.send_signal(signal.SIGTERM)
    while server.get("/readyz").is_success:
        pass
    callers = [threading.Thread(target=ask, args=(server, seen, *texts.request(3))) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert [each.status for each in seen] == [200] * 8
    assert server.wait_exit(20) == 0
    assert not any(worker.is_running() for worker in workers)
