"""A real server against what comes from outside: keys, pickles, half-sent bodies, planted words, open sockets."""

from __future__ import annotations

import concurrent.futures
import contextlib
import gzip
import json
import os
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bentoml
import httpx
import psutil
import pytest

from servers import Server

KEY, SECOND, FROM_FILE = "planted-key-alpha", "planted-key-beta", "planted-key-gamma"
MARKER = "planted"
ORIGIN = "https://app.example.com"
OPEN = ("/livez", "/readyz", "/healthz")
PAGES = ("/", "/health", "/metrics", "/docs.json")
CLOSED = ("/schema.json", "/info", "/models", "/v1/models", "/static_content/x", "/anything")
POSTS = ("/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score")
QUESTION: dict[str, Any] = {"query": "capital of France", "documents": ["Rome", "Paris is the capital of France"]}
PICKLE = "application/vnd.bentoml+pickle"
BODY_LIMIT, MEMORY_LIMIT = 1_000_000, 4_000_000


class Guarded(Server):
    """A server with keys. key_file: holds FROM_FILE."""

    def __init__(self, home: Path, key_file: Path) -> None:
        key_file.write_text(f"{FROM_FILE} # planted-comment\n")
        self.key_file = key_file
        super().__init__(
            home,
            RERANKER_API_KEYS=f"{KEY},{SECOND}",
            RERANKER_API_KEYS_FILE=key_file,
            RERANKER_OPEN_PAGES="false",
            RERANKER_BODY_TIMEOUT=1,
            RERANKER_MAX_BODY_BYTES=BODY_LIMIT,
            RERANKER_MAX_BODY_MEMORY=MEMORY_LIMIT,
            RERANKER_MAX_PAIRS_PER_KEY=50,
            RERANKER_CORS_ORIGINS=f"{ORIGIN}/, https://other.example.com",
        )

    def ask(self, path: str = "/rerank", key: str | None = KEY, **headers: str) -> httpx.Response:
        """POST a question with a key."""
        sent = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.post(self.url + path, json=QUESTION, headers=sent | headers, timeout=30)

    def raw(self, sent: bytes, *, timeout: float = 10.0) -> bytes:
        """Send bytes, never end, and read until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            connection.sendall(sent)
            return received(connection)


def received(connection: socket.socket) -> bytes:
    """Read until the other side closes."""
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            answer += piece
    return answer


def head(path: str = "/rerank", key: str = KEY, **headers: str) -> bytes:
    """Write the head of a request."""
    lines = [f"POST {path} HTTP/1.1", "host: x", f"x-api-key: {key}", "content-type: application/json"]
    return "\r\n".join([*lines, *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()), "", ""]).encode()


@pytest.fixture(scope="module")
def server(builtin_tag: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """Start one for all tests here."""
    assert builtin_tag
    with Guarded(Path(os.environ["BENTOML_HOME"]), tmp_path_factory.mktemp("planted-folder") / "keys") as started:
        yield started


@pytest.mark.parametrize("path", CLOSED + PAGES)
def test_everything_but_probes_needs_a_key(server: Guarded, path: str) -> None:
    """With RERANKER_OPEN_PAGES=false the pages for people, too."""
    refused = httpx.get(server.url + path)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.json()["error"]["code"] == "unauthorized"
    assert httpx.get(server.url + path, headers={"x-api-key": KEY}).status_code in (200, 404)


@pytest.mark.parametrize("path", OPEN)
def test_probes_need_none(server: Guarded, path: str) -> None:
    """Kubernetes asks without."""
    assert httpx.get(server.url + path).status_code == 200


@pytest.mark.parametrize("path", POSTS)
def test_no_key_and_wrong_keys_are_refused_in_words_that_clients_read(server: Guarded, path: str) -> None:
    """On each route."""
    for key in (None, "wrong", KEY[:-1], KEY + "x"):
        refused = server.ask(path, key)
        assert refused.status_code == 401
        body = refused.json()
        assert body["message"] == body["detail"] == body["error"]["message"]
        assert body["error"]["type"] == "authentication_error"
    assert httpx.post(server.url + path, json=QUESTION, headers={"authorization": SECOND}).status_code != 401


def test_a_wrong_key_is_answered_before_the_body_has_come(server: Guarded) -> None:
    """A megabyte is promised and never sent."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head(key="wrong", content_length="900000"))
        assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_bentoml_s_client_sends_its_token(server: Guarded) -> None:
    """For the schema and for the call."""
    with bentoml.SyncHTTPClient(server.url, token=KEY) as client:
        assert client.rerank(**QUESTION)["results"][0]["index"] == 1


def test_keys_of_the_file_change_without_a_restart(server: Guarded) -> None:
    """Within two seconds; the environment's keys stay."""

    def settles(key: str, status: int) -> bool:
        end = time.monotonic() + 3
        while time.monotonic() < end:
            if server.ask(key=key).status_code == status:
                return True
        return False

    assert server.ask(key=FROM_FILE).status_code == 200
    server.key_file.write_text("planted-key-delta\n")
    assert settles("planted-key-delta", 200)
    assert settles(FROM_FILE, 401)
    server.key_file.write_text(FROM_FILE)
    assert settles(FROM_FILE, 200)
    assert server.ask().status_code == 200


def test_a_key_s_share_is_bounded(server: Guarded) -> None:
    """A big request is taken alone; beside it the same key is told to wait, and another one is served."""
    big = {"query": "q", "documents": [f"{number} " + "many words " * 10 for number in range(60)]}
    stop = threading.Event()

    def occupy() -> None:
        while not stop.is_set():
            fresh = big | {"query": f"q{time.monotonic()}"}
            httpx.post(server.url + "/rerank", json=fresh, headers={"x-api-key": SECOND}, timeout=60)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(occupy)
        try:
            end = time.monotonic() + 20
            while (busy := server.ask(key=SECOND)).status_code == 200:
                assert time.monotonic() < end
            assert server.ask().status_code == 200
        finally:
            stop.set()
    assert (busy.status_code, busy.json()["error"]["code"]) == (429, "key_busy")
    assert int(busy.headers["retry-after"]) >= 1


class Trap:
    """What creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_pickle_is_refused_and_never_loaded(server: Guarded, tmp_path: Path) -> None:
    """On any route, by any method, however its type is spelt."""
    trap = tmp_path / "trap"
    body = pickle.dumps(Trap(trap))
    pickle.loads(body)  # noqa: S301  a trap that does not work would prove nothing
    trap.unlink()
    spellings = [
        [("content-type", PICKLE)],
        [("content-type", PICKLE.upper())],
        [("Content-Type", "Application/Vnd.BentoML+Pickle; charset=utf-8")],
        [("content-type", PICKLE), ("content-type", "application/json")],
        [("content-type", "application/json"), ("content-type", PICKLE)],
        [("content-type", f"application/json, {PICKLE}")],
        [("content-type", f"{PICKLE};application/json")],
        [("content-type", "application/json; x=" + PICKLE)],
        [("content-type", "application/octet-stream")],
        [("content-type", "multipart/form-data; boundary=x")],
        [("content-type", "application/json"), ("payload-container", "Default"), ("payload-meta", '{"format":"pickle"}')],
        [("content-type", PICKLE), ("payload-container", "PandasDataFrameContainer"), ("args-number", "1")],
        [("bento-name", "x"), ("runner-name", "Scorer"), ("content-type", PICKLE)],
        [],
    ]
    paths = (
        *POSTS,
        "/rerank%0a",
        "/v1/rerank%0a",
        "/v1/rerank/",
        "//rerank",
        "/RERANK",
        "/schema.json",
        "/",
        "/score_batch",
        "/__runner__",
        "/heartbeat",
        "/unknown",
        *OPEN,
        "/metrics",
        "/health",
    )
    with httpx.Client(base_url=server.url) as client:
        for path in paths:
            for method in ("POST", "GET", "PUT"):
                for spelling in spellings if method == "POST" else spellings[:1]:
                    headers = [("x-api-key", KEY), *spelling]
                    answer = client.request(method, path, content=body, headers=headers)
                    reads = method == "POST" and path.removesuffix("%0a") in POSTS
                    is_pickle = any(
                        name.lower() == "content-type" and PICKLE in value.lower().split(";")[0] for name, value in spelling
                    )
                    assert answer.status_code in ((400, 415) if reads else (200, 307, 404, 405, 415)), (method, path, spelling)
                    assert answer.status_code == 415 or method != "POST" or not is_pickle, (method, path, spelling)
    assert not trap.exists()


def test_only_the_port_and_circus_on_loopback_listen(server: Guarded) -> None:
    """The Scorer has a Unix socket and no port."""
    parent = psutil.Process(server.process.pid)
    processes = [parent, *parent.children(recursive=True)]
    assert server.workers("Scorer")
    listening = {
        connection.laddr
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == "LISTEN"
    }
    assert server.port in {address.port for address in listening}
    assert {address.ip for address in listening} == {"127.0.0.1"}
    others = {address.port for address in listening} - {server.port}
    by_parent = {connection.laddr.port for connection in parent.net_connections("inet") if connection.status == "LISTEN"}
    assert len(others) <= 3
    assert others <= by_parent  # circus's
    unbound = [c for process in processes for c in process.net_connections("inet") if c.type == socket.SOCK_DGRAM and not c.raddr]
    assert unbound == []


@pytest.mark.parametrize(
    ("headers", "sent"),
    [
        ({"content_length": "500"}, b""),
        ({"content_length": "500"}, b'{"query'),
        ({"transfer_encoding": "chunked"}, b'7\r\n{"query\r\n'),
    ],
    ids=["declared and never sent", "half sent", "half sent in chunks"],
)
def test_a_half_sent_body_is_answered_and_cut_off(server: Guarded, headers: dict[str, str], sent: bytes) -> None:
    """After RERANKER_BODY_TIMEOUT, and the connection with it."""
    answer = server.raw(head(**headers) + sent)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer.lower()
    assert b"body_timeout" in answer


def test_a_post_that_offers_another_protocol_is_answered_once(server: Guarded) -> None:
    """As Java's HttpClient does; its body is no request of its own, whatever it says and whenever it comes."""
    body = json.dumps({"query": "DELETE / HTTP/1.1", "documents": ["b"]}).encode()
    offer = head(
        connection="Upgrade, HTTP2-Settings, close",
        upgrade="h2c",
        http2_settings="AAMAAABkAARAAAAAAAIAAAAA",
        content_length=str(len(body)),
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(offer)
        time.sleep(0.2)
        connection.sendall(body)
        answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1") == 1
    assert b'"results"' in answer


@pytest.mark.parametrize("begin", [b"POST /", head()[:-2] + b"x-long: "], ids=["path", "header"])
def test_a_head_without_end_is_refused(server: Guarded, begin: bytes) -> None:
    """Before it takes more memory than one head may."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(begin + b"a" * 1_000_000)
        answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 400") or not answer  # closed while there was more to come
    assert server.ask().status_code == 200


def test_a_body_that_trickles_is_cut_off_at_the_same_time(server: Guarded) -> None:
    """A byte now and then does not start the clock anew."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=0.05) as connection:
        connection.sendall(head(transfer_encoding="chunked"))
        start, answer = time.monotonic(), b""
        while not answer and time.monotonic() < start + 10:
            connection.sendall(b"1\r\n \r\n")
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() < start + 5


@pytest.mark.parametrize("key", [KEY, "wrong"])
def test_who_is_refused_cannot_go_on_sending_for_ever(server: Guarded, key: str) -> None:
    """A body without a declared end is closed with its answer."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head(key=key, transfer_encoding="chunked"))
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            pytest.fail("64 MB were taken")
        assert received(connection)[:13] in (b"HTTP/1.1 413 ", b"HTTP/1.1 401 ", b"")


def test_half_sent_bodies_do_not_fill_the_memory_nor_keep_others_out(server: Guarded) -> None:
    """Forty times 0.9 MB where there is room for four: the largest go, small ones come through."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10)) for _ in range(40)]
        for connection in connections:
            with contextlib.suppress(ConnectionError):
                connection.sendall(head(content_length="999999") + b"x" * 900_000)
        assert server.ask().status_code == 200
        statuses = [received(connection)[9:12] for connection in connections]
    assert set(statuses) <= {b"429", b"408", b""}
    assert statuses.count(b"429") > 10


def test_gzip_is_read_and_a_bomb_is_not(server: Guarded) -> None:
    """As the limits say, on a real connection."""
    headers = {"x-api-key": KEY, "content-type": "application/json", "content-encoding": "gzip"}
    taken = httpx.post(server.url + "/rerank", content=gzip.compress(json.dumps(QUESTION).encode()), headers=headers)
    assert taken.json()["results"][0]["index"] == 1
    bomb = gzip.compress(b'{"query":"' + b"x" * 100_000_000, compresslevel=1)
    assert len(bomb) < BODY_LIMIT
    assert httpx.post(server.url + "/rerank", content=bomb, headers=headers).status_code == 413
    other = httpx.post(server.url + "/rerank", content=b"x", headers=headers | {"content-encoding": "br"})
    assert (other.status_code, other.json()["error"]["code"]) == (415, "unsupported_media_type")


def test_named_origins_may_call_from_a_browser(server: Guarded) -> None:
    """Preflights come without a key, and errors can be read, too."""
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    allowed = httpx.options(server.url + "/rerank", headers={"origin": ORIGIN} | asks)
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, ORIGIN)
    assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
    for key, status in ((KEY, 200), ("wrong", 401)):
        answer = server.ask(key=key, origin=ORIGIN)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, ORIGIN)
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert {"retry-after", "x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time"} <= set(exposed)
    stranger = httpx.options(server.url + "/rerank", headers={"origin": "https://evil.example.com"} | asks)
    assert stranger.status_code == 400
    assert "access-control-allow-origin" not in server.ask(origin="https://evil.example.com").headers


def planted_requests() -> Iterator[tuple[str, str, dict[str, str], bytes]]:
    """Requests of every kind with a marker in every place where a caller can write."""
    good = {"x-api-key": KEY, "content-type": "application/json", "user-agent": f"{MARKER}-agent"}
    words = {"query": f"{MARKER} query", "documents": [f"{MARKER} document"], "return_documents": False}
    for path in POSTS:
        yield "POST", f"{path}?{MARKER}=1", good, json.dumps(words | {"queries": "q"}).encode()
        yield "POST", path, good | {"x-forwarded-for": f"{MARKER}, ::1%{MARKER}"}, b"{}"
        for bad in (
            {"query": f"{MARKER}", "documents": []},
            {"query": f"{MARKER}", "documents": [1]},
            {"query": [MARKER], "documents": [MARKER]},
            {"texts": [MARKER, 1], "query": MARKER},
            words | {"top_n": MARKER},
            words | {"long_documents": MARKER},
            words | {"rank_fields": {MARKER: MARKER}},
            words | {"truncation": False, "documents": [f"{MARKER} " * 3000]},
            words | {"query": f"{MARKER} " * 3000},
            words | {"documents": [MARKER] * 1001},
        ):
            yield "POST", path, good, json.dumps(bad).encode()
        yield "POST", path, good, b'{"query":"' + MARKER.encode() + b'",'
        yield "POST", path, good, MARKER.encode() + b"\xff"
        yield "POST", path, good, b'{"query":"' + MARKER.encode() * 200_000 + b'"}'
        yield "POST", path, good | {"content-type": f"text/{MARKER}"}, b"{}"
        yield "POST", path, good | {"content-encoding": MARKER}, b"{}"
        yield "POST", path, good | {"x-api-key": f"{MARKER}-wrong"}, b"{}"
        yield "GET", path, good, b""
    for path in (f"/{MARKER}", f"/rerank/{MARKER}", f"/static_content/{MARKER}", f"/livez{MARKER}", f"/%0a{MARKER}"):
        for method in ("GET", "POST", "PLANTED"):
            yield (
                method,
                path,
                good
                | {
                    f"x-{MARKER}": MARKER,
                    "traceparent": MARKER,
                    "cookie": MARKER,
                    "x-forwarded-for": MARKER,
                    "x-forwarded-proto": MARKER,
                    "referer": MARKER,
                },
                MARKER.encode(),
            )


def test_nothing_of_a_caller_is_in_the_log_or_in_an_error(server: Guarded) -> None:
    """No text, key, path, header or query string; this runs last and greps all that the server has printed."""
    statuses = set()
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for method, path, headers, body in planted_requests():
            answer = client.request(method, path, headers=headers, content=body)
            statuses.add(answer.status_code)
            assert MARKER not in answer.text.lower(), (method, path)
            assert not any(MARKER in value.lower() for value in answer.headers.values())
        metrics = client.get("/metrics", headers={"x-api-key": KEY}).text
    server.raw(f"{MARKER} {MARKER} HTTP/9\r\n\r\n".encode())
    server.raw(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\nupgrade: planted\r\n\r\n")
    assert {200, 400, 401, 404, 405, 413, 415, 422} <= statuses
    assert "POST /rerank 400 " in server.log
    assert "no API keys" not in server.log
    assert MARKER not in server.log.lower()
    assert MARKER not in metrics.lower()
    assert str(server.key_file) not in server.log
