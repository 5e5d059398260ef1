"""A real `bentoml serve`: clients, concurrency, memory, what its log holds."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bentoml
import httpx
import pytest

from servers import REPOSITORY, Server
from texts import Texts

SECRET = "planted-marker-9d20"


@pytest.fixture(scope="module")
def server(builtin_tag: str) -> Iterator[Server]:
    """Serve the built-in model as a stranger would."""
    assert builtin_tag
    with Server(Path(os.environ["BENTOML_HOME"])) as running:
        yield running


def test_the_order_is_sensible(server: Server) -> None:
    """The README's own question."""
    documents = [
        "Bread is baked from flour and water.",
        "A reranker sorts documents by relevance to a query.",
        "Paris is in France.",
    ]
    results = server.post(query="what is a reranker?", documents=documents).json()["results"]
    assert results[0]["index"] == 1


def test_a_long_document_is_found_by_its_best_window(server: Server) -> None:
    """What answers the query stands behind the window: cut off unless the document is read in windows; the span says where."""
    hit = "A reranker sorts documents by relevance to a query. "
    noise = "Bread is baked from flour and water, and a river crosses the plains. " * 60
    request = {"query": "what is a reranker?", "documents": [noise + hit * 20 + noise, "A ranking of kitchens."]}
    cut = server.post(**request).json()
    assert [result["index"] for result in cut["results"]] == [1, 0]
    assert (cut["meta"]["truncated_documents"], "document_span" in cut["results"][0]) == ([0], False)
    for cached in (0, 2):
        read = server.post(**request, long_documents="chunk").json()
        assert (read["meta"]["cached_documents"], read["meta"]["truncated_documents"]) == (cached, [])
        assert [result["index"] for result in read["results"]] == [0, 1]
        span = read["results"][0]["document_span"]
        assert hit in request["documents"][0][span["start"] : span["end"]]
        assert read["results"][1]["document_span"] == {"start": 0, "end": len(request["documents"][1])}
        assert read["usage"]["prompt_tokens"] > 1000 > cut["usage"]["prompt_tokens"]
    alone = server.post(query=request["query"], documents=[request["documents"][0][span["start"] : span["end"]]]).json()
    assert alone["results"][0]["relevance_score"] == pytest.approx(read["results"][0]["relevance_score"], abs=0.02)
    few = server.post(**request, long_documents="chunk", max_chunks_per_doc=2).json()
    assert few["meta"]["truncated_documents"] == [0]
    refused = server.post(**request, long_documents="chunk", max_chunks_per_doc=2, truncation=False)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "document_too_long")


def test_bentoml_clients_work(server: Server, builtin_tag: str) -> None:
    """The sync and the async one, and an error as the client's own class."""
    with bentoml.SyncHTTPClient(server.url) as client:
        answer = client.rerank(query="capital of France", documents=["Rome", {"text": "Paris", "id": "p"}], top_n=1)
        assert answer["results"][0]["id"] == "p"
        assert answer["model"] == builtin_tag
        with pytest.raises(bentoml.exceptions.InvalidArgument):
            client.rerank(query=" ", documents=["Rome"])

    async def ask() -> dict[str, object]:
        async with bentoml.AsyncHTTPClient(server.url) as client:
            return await client.rerank(query="capital of France", documents=["Rome", "Paris"], return_documents=False)

    assert "document" not in asyncio.run(ask())["results"][0]


def test_one_bad_request_harms_none_of_its_neighbours(server: Server) -> None:
    """16 at once, one of them bad in a different way each round."""
    bad = [
        b'{"query":"q","documents":[]}',
        b'{"query":"q","documents":["' + b"a" * 5_000_000 + b'"],"truncation":"no"}',
        b'{"query":"' + b"w " * 3000 + b'","documents":["d"]}',
        b'{"query":"q","documents":["\\ud800"],"top_n":-1}',
    ]

    def send(number: int) -> int:
        if number % 16 == 3:
            return server_post(server, bad[number // 16])
        query, documents = Texts(number).request(5)
        return server.post(query=query, documents=documents).status_code

    with ThreadPoolExecutor(16) as pool:
        for turn in range(len(bad)):
            statuses = list(pool.map(send, range(16 * turn, 16 * turn + 16)))
            assert statuses.pop(3) == httpx.codes.BAD_REQUEST
            assert statuses == [httpx.codes.OK] * 15


def test_a_million_characters_of_nothing_keep_nobody_waiting(server: Server) -> None:
    """A valid request whose tokenising would take seconds, beside small ones."""
    with ThreadPoolExecutor(4) as pool:
        big = [pool.submit(server.post, query="q", documents=[text * 1_000_000, "d"]) for text in " a"]
        small = [pool.submit(server.post, query=f"small {number}", documents=["d"]) for number in range(20)]
        for answer in (future.result() for future in big):
            assert answer.status_code == httpx.codes.OK
            assert answer.json()["meta"]["truncated_documents"] == [0]
        assert {future.result().status_code for future in small} == {httpx.codes.OK}
        tokenising = [answer.result().json()["took_ms"] for answer in big]
    print(f"documents of a million characters took {tokenising} ms")
    assert max(tokenising) < 3000  # five to ten times what it takes; tokenising it whole takes longer than that


def server_post(server: Server, body: bytes) -> int:
    """POST raw bytes."""
    return httpx.post(server.url + "/rerank", content=body, headers={"content-type": "application/json"}, timeout=60).status_code


def test_many_clients_with_new_text_all_succeed(server: Server) -> None:
    """32 clients for a while (ENDURANCE_SECONDS: how long): no failed request, no dropped call."""
    seconds = float(os.environ.get("ENDURANCE_SECONDS", "10"))
    end = time.monotonic() + seconds
    statuses: list[int] = []

    def client(number: int) -> None:
        texts = Texts(10_000 + number)
        with httpx.Client(base_url=server.url, timeout=120) as connection:
            while time.monotonic() < end:
                query, documents = texts.request(4)
                statuses.append(connection.post("/v2/rerank", json={"query": query, "documents": documents}).status_code)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{len(statuses)} requests in {seconds:g} s")
    assert len(statuses) > seconds
    assert set(statuses) == {httpx.codes.OK}


def test_a_pause_between_requests_breaks_no_connection(server: Server) -> None:
    """Idle connections are closed by uvicorn after 5 s; the call to the Scorer must survive that (ENDURANCE_PAUSES: how often)."""
    assert server.post(query="before", documents=["a", "b"]).status_code == httpx.codes.OK
    for number in range(int(os.environ.get("ENDURANCE_PAUSES", "2"))):
        time.sleep(6)  # the pause is what is tested
        assert server.post(query=f"pause {number}", documents=["a", "b"]).status_code == httpx.codes.OK


def test_a_cut_off_caller_leaves_the_server_well(server: Server) -> None:
    """Half of the callers go away midway; the others get their answers."""
    query, documents = Texts(77).request(200)

    def impatient() -> None:
        with pytest.raises(httpx.TimeoutException):
            server.post(query=query, documents=documents, timeout=0.3)

    with ThreadPoolExecutor(8) as pool:
        gone = [pool.submit(impatient) for _ in range(4)]
        patient = [pool.submit(server.post, query=f"patient {number}", documents=documents[:10]) for number in range(4)]
        for future in gone:
            future.result()
        assert [future.result().status_code for future in patient] == [httpx.codes.OK] * 4
    assert server.get("/health").json()["requests"]["waiting"] == 0


def test_the_entry_is_small_and_holds_no_torch(server: Server) -> None:
    """Below 200 MB resident, and no torch library mapped."""
    [entry] = server.workers("Reranker")
    megabytes = entry.memory_info().rss / 1e6
    print(f"entry worker: {megabytes:.0f} MB resident")
    assert megabytes < 200
    mapped = Path(f"/proc/{entry.pid}/maps").read_text()
    assert "libtorch" not in mapped
    [scorer] = server.workers("Scorer")
    assert "libtorch" in Path(f"/proc/{scorer.pid}/maps").read_text()


def test_the_log_holds_no_text_of_callers(server: Server) -> None:
    """Good requests, bad ones, and ones that BentoML would have logged."""
    server.post(query=SECRET, documents=[SECRET])
    server.post(query=SECRET, documents=[SECRET], top_n=SECRET)
    server_post(server, f'{{"query":"{SECRET}"'.encode())
    httpx.post(server.url + "/rerank", content=SECRET, headers={"content-type": "application/vnd.bentoml+pickle"})
    assert "POST /rerank 400" in server.log
    assert SECRET not in server.log


def test_metrics_of_both_services_are_on_one_page(server: Server) -> None:
    """Entry and Scorer count in different processes."""
    text = server.get("/metrics").text
    for name in ("reranker_requests_total", "reranker_batch_pairs_sum", "reranker_tokens_total", "reranker_stage_seconds_count"):
        assert name in text
    assert server.get("/livez").status_code == httpx.codes.OK


def test_the_readme_code_runs(server: Server) -> None:
    """Its curl and its Python, word for word but for the port."""
    readme = (REPOSITORY / "README.md").read_text()
    curl = re.search(r"^curl .*?'$", readme, re.MULTILINE | re.DOTALL)
    snippet = re.search(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert curl
    assert snippet
    here = f"localhost:{server.port}"
    answered = subprocess.run(
        ["bash", "-c", curl.group().replace("localhost:3000", here)], check=True, capture_output=True, text=True
    )
    answer = json.loads(answered.stdout)
    assert answer["results"][0]["index"] == 1
    shown = json.loads(re.search(r"^```json\n(.*?)^```", readme, re.MULTILINE | re.DOTALL).group(1))
    assert shown.keys() == answer.keys()
    for real, pasted in zip(answer["results"], shown["results"], strict=True):
        assert real["document"] == pasted["document"]
        assert real["relevance_score"] == pytest.approx(pasted["relevance_score"], abs=1e-3)
    printed = subprocess.run(
        [sys.executable, "-c", snippet.group(1).replace("localhost:3000", here)], check=True, capture_output=True, text=True
    )
    assert printed.stdout.strip() == "Paris"
