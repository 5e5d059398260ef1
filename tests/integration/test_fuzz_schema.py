"""What /docs.json says is so: schemathesis asks a real server all that the document allows, and much that it does not."""

from __future__ import annotations

import collections
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bento_service.edge import GET_ROUTES, POST_ROUTES
from servers import REPOSITORY, Server

FUZZ = REPOSITORY / "tests" / "fuzz"
# In an environment of its own; `make test` and `make fuzz` make it.
SCHEMATHESIS = Path(os.environ.get("FUZZ_VENV", REPOSITORY / ".venv-fuzz"), "bin", "schemathesis")
SEED = os.environ.get("FUZZ_SEED", "4")
# Drawn cases for each route that takes a body; schemathesis adds some 1,900 that follow from the document alone.
PER_ROUTE = int(os.environ.get("FUZZ_PER_ROUTE", "50"))
CASES = max(500, PER_ROUTE * len(POST_ROUTES))
TIMEOUT_SECONDS = 180 + (CASES + 2000) // 5  # a case takes 10 to 70 ms, and some 2,000 follow from the document


@pytest.fixture(scope="module")
def server(builtin_tag: str) -> Iterator[Server]:
    """Serve with limits so small that cases are quick and often meet them."""
    assert builtin_tag
    limits = {"RERANKER_MAX_LENGTH": 32, "RERANKER_MAX_DOCUMENTS": 8, "RERANKER_MAX_DOCUMENT_CHARACTERS": 200}
    with Server(Path(os.environ["BENTOML_HOME"]), **limits) as started:
        yield started


def _run(server: Server, answers: Path) -> subprocess.CompletedProcess[str]:
    command = [
        str(SCHEMATHESIS),
        "--no-color",
        "--config-file",
        str(FUZZ / "schemathesis.toml"),
        "run",
        f"{server.url}/docs.json",
    ]
    command += ["--seed", SEED, "--max-examples", str(PER_ROUTE)]
    environment = os.environ | {"ANSWERS": str(answers), "PYTHONPATH": str(FUZZ)}
    return subprocess.run(
        command, cwd=answers.parent, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )


@pytest.mark.timeout(TIMEOUT_SECONDS + 180)
def test_no_request_gets_an_answer_that_the_document_does_not_name(server: Server, tmp_path: Path) -> None:
    """No 5xx, no undocumented status, content type, header or body; what the schema allows is answered, what it forbids is not."""
    begin = time.perf_counter()
    ran = _run(server, tmp_path / "answers.json")
    assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr[-5_000:]
    counts: list[dict[str, Any]] = json.loads((tmp_path / "answers.json").read_text())
    statuses: collections.Counter[int] = collections.Counter()
    answered: dict[str, set[int]] = collections.defaultdict(set)
    for each in counts:
        statuses[each["status"]] += each["cases"]
        method, path = each["route"].split()
        answered[path] |= {each["status"]} if method == ("POST" if path in POST_ROUTES else "GET") else set()
    summary = {
        "cases": statuses.total(),
        "seed": int(SEED),
        "seconds": round(time.perf_counter() - begin, 1),
        "statuses": dict(sorted(statuses.items())),
        "routes": {path: dict(_by_status(counts, path)) for path in sorted(POST_ROUTES)},
    }
    print("\n" + json.dumps(summary))
    assert statuses.total() >= CASES
    assert not [status for status in statuses if status >= httpx.codes.INTERNAL_SERVER_ERROR]
    # Where a check judges nothing, it proves nothing: every route was used well, and each one that takes a body badly too.
    assert all({200, 400, 415} <= answered[path] for path in POST_ROUTES)
    assert 422 in answered["/rerank"]
    assert all(answered[path] == {200} for path in GET_ROUTES - {"/docs.json"})


def _by_status(counts: list[dict[str, Any]], path: str) -> Iterator[tuple[int, int]]:
    yield from ((each["status"], each["cases"]) for each in counts if each["route"] == f"POST {path}")


def test_the_server_is_well_and_logs_no_failure(server: Server) -> None:
    """After all that."""
    assert server.get("/health").json()["status"] == "ok"
    assert server.get("/docs.json").headers["content-type"] == "application/json"
    assert "Traceback" not in server.log
    assert server.post(query="q", documents=["d"]).status_code == httpx.codes.OK
