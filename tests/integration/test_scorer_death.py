"""The Scorer killed, hung, doubled: nothing hangs, and it comes back by itself."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest

from servers import Server
from texts import Texts

pytestmark = pytest.mark.alone

CIRCUS_CHECK_SECONDS = 10


def wait_for_status(server: Server, status: int, timeout: float) -> float:
    """Poll /readyz until it gives a status; the seconds that took."""
    start = time.monotonic()
    while time.monotonic() - start < timeout:
        if server.get("/readyz", timeout=2).status_code == status:
            return time.monotonic() - start
        time.sleep(0.02)
    raise AssertionError(f"/readyz did not become {status} within {timeout} s; the log:\n{server.log}")


def test_a_killed_scorer_fails_its_callers_at_once_and_comes_back(builtin_tag: str) -> None:
    """503 with Retry-After for those in its hands and for new ones, /readyz within 1 s, back within circus's 10 s plus a start."""
    assert builtin_tag
    start = time.monotonic()
    with Server(Path(os.environ["BENTOML_HOME"])) as server:
        start_seconds = time.monotonic() - start
        query, documents = Texts(1).request(800)
        answers: list[tuple[int, str | None, float]] = []

        def call() -> None:
            answer = server.post(query=query, documents=documents)
            answers.append((answer.status_code, answer.headers.get("retry-after"), time.monotonic()))

        callers = [threading.Thread(target=call) for _ in range(4)]
        for caller in callers:
            caller.start()
        while server.get("/health").json()["requests"]["active"] == 0:
            time.sleep(0.02)
        [scorer] = server.workers("Scorer")
        scorer.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        noticed = wait_for_status(server, httpx.codes.SERVICE_UNAVAILABLE, 1.0)
        for caller in callers:
            caller.join(10)
        assert [status for status, _, _ in answers] == [httpx.codes.SERVICE_UNAVAILABLE] * 4
        assert all(retry and int(retry) >= 1 for _, retry, _ in answers)
        slowest = max(at - killed for _, _, at in answers)
        assert slowest < 1.0

        asked = time.monotonic()
        refused = server.post(query="q", documents=["d"])
        assert refused.status_code == httpx.codes.SERVICE_UNAVAILABLE
        assert refused.json()["error"]["code"] == "scorer_down"
        assert time.monotonic() - asked < 1.0
        assert server.get("/health").status_code == httpx.codes.SERVICE_UNAVAILABLE
        assert server.get("/livez").status_code == httpx.codes.OK

        back = wait_for_status(server, httpx.codes.OK, CIRCUS_CHECK_SECONDS + 2 * start_seconds)
        assert server.post(query="q", documents=["d"]).status_code == httpx.codes.OK
        print(
            f"start {start_seconds:.1f} s; noticed {noticed:.2f} s, callers answered {slowest:.2f} s, back {back:.1f} s after the kill"
        )


def test_a_hung_scorer_is_noticed(builtin_tag: str) -> None:
    """SIGSTOP: 503 after RERANKER_SCORER_SILENCE_SECONDS, /livez fails after RERANKER_LIVENESS_SECONDS, both recover.

    And a server that is to end does so within its bound, whoever waits for the hung one being told.
    """
    assert builtin_tag
    home = Path(os.environ["BENTOML_HOME"])
    with Server(home, RERANKER_SCORER_SILENCE_SECONDS=4, RERANKER_LIVENESS_SECONDS=5, RERANKER_SHUTDOWN_SECONDS=5) as server:
        [scorer] = server.workers("Scorer")
        scorer.suspend()
        try:
            answer = server.post(query="q", documents=["d"], timeout=10)
            assert answer.status_code == httpx.codes.SERVICE_UNAVAILABLE
            assert server.get("/readyz").status_code == httpx.codes.SERVICE_UNAVAILABLE
            end = time.monotonic() + 10
            while server.get("/livez").status_code == httpx.codes.OK:
                assert time.monotonic() < end
                time.sleep(0.05)
        finally:
            scorer.resume()
        wait_for_status(server, httpx.codes.OK, 10)
        assert server.get("/livez").status_code == httpx.codes.OK
        assert server.post(query="q", documents=["d"]).status_code == httpx.codes.OK

        answers: list[httpx.Response] = []
        scorer.suspend()
        waiting = threading.Thread(target=lambda: answers.append(server.post(query="q", documents=["new"], timeout=20)))
        waiting.start()
        while not server.get("/health").json()["requests"]["active"]:
            time.sleep(0.02)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_exit(9) == 0
        waiting.join(5)
        # By the end of the bound, before the silence would be noticed.
        assert [(answer.status_code, answer.json()["error"]["code"]) for answer in answers] == [
            (httpx.codes.SERVICE_UNAVAILABLE, "shutting_down")
        ]
        assert answers[0].headers["retry-after"]
        assert not scorer.is_running()


def test_two_scorers_share_the_load_and_one_can_die(builtin_tag: str) -> None:
    """Calls are spread evenly; with one of two gone the service is degraded, not down; without their parent the workers end."""
    assert builtin_tag
    with Server(Path(os.environ["BENTOML_HOME"]), RERANKER_SCORER_WORKERS=2, RERANKER_TORCH_THREADS=1) as server:
        while server.get("/health").json()["model"]["scorers"] != {"up": 2, "total": 2}:
            time.sleep(0.05)
        texts = Texts(2)
        threads = []
        for _ in range(24):
            query, documents = texts.request(12)
            threads.append(threading.Thread(target=server.post, kwargs={"query": query, "documents": documents}))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lines = server.get("/metrics").text.splitlines()
        calls = sorted(float(line.split()[-1]) for line in lines if line.startswith("reranker_scorer_calls_total"))
        assert len(calls) == 2
        assert sum(calls) >= 24  # more where the model is so slow that 12 pairs go out in two calls
        assert calls[0] >= 0.35 * sum(calls)

        [second] = server.workers("Scorer2")
        second.kill()
        while server.get("/health").json()["status"] != "degraded":
            time.sleep(0.02)
        assert server.get("/readyz").status_code == httpx.codes.OK
        assert server.post(query="q", documents=["d"]).status_code == httpx.codes.OK

        # Nobody would start a dead one again, or pass a signal on.
        workers = server.workers("Reranker") + server.workers("Scorer") + server.workers("Scorer2")
        server.process.kill()
        assert psutil.wait_procs(workers, timeout=10)[1] == []
