"""`make cache-clear`: one model's keys go and all others stay, and what cannot be done is said in one line."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator

import pytest
from cache_parts import FINGERPRINT, OTHER_FINGERPRINT, calls_of, look_up, make_keys, scores_of, sharing
from parts import played
from redis.cluster import RedisCluster as ClusterClient

from bento_service.cache import layout
from bento_service.cache.clear import clear, main
from bento_service.metrics import EntryMetrics
from bento_service.redis_url import parse_redis_url
from bento_service.settings import known_variables
from redis_servers import RedisCluster, RedisServer

STRANGERS = (
    "reranker",
    f"reranker:3:{FINGERPRINT[:16]}:{{x}}:0",
    f"reranker:2:{FINGERPRINT[:15]}:{{x}}:0",
    f"reranker:2:{FINGERPRINT[:16]}",
    f"other:reranker:2:{FINGERPRINT[:16]}:{{x}}:0",
)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset every variable that the service knows."""
    for name in known_variables():
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cluster_client(redis_cluster: RedisCluster) -> Iterator[ClusterClient]:
    """Offer a client of the whole cluster."""
    with ClusterClient(host="127.0.0.1", port=redis_cluster.servers[0].port) as client:
        yield client


def names(count: int, fingerprint: str) -> list[str]:
    """Name the first pages of so many queries."""
    return [layout.query_keys(fingerprint, make_keys(0, f"query {number}", fingerprint).query)[1] for number in range(count)]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str, **environment: str) -> str | int | None:
    """Run the program as from a shell: what it exits with."""
    monkeypatch.setattr(sys, "argv", ["clear", *arguments])
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    try:
        main()
    except SystemExit as end:
        return end.code
    return 0


@played
async def test_what_was_stored_under_the_model_is_forgotten(redis_server: RedisServer, entry_metrics: EntryMetrics) -> None:
    """Scores and claims; another model's scores are still known, and workers are told."""
    mine, other = make_keys(10), make_keys(10, fingerprint=OTHER_FINGERPRINT)
    async with sharing(redis_server.url, entry_metrics) as shared:
        for keys in (mine, other):
            await shared.settle(keys, scores_of(keys), (), shared.new_token())
        await look_up(shared, make_keys(3, "claimed"))
        assert await shared.was_cleared(FINGERPRINT) is False
        assert await clear(parse_redis_url(redis_server.url), FINGERPRINT) == 2
        assert await shared.was_cleared(FINGERPRINT) is True
        assert await shared.was_cleared(OTHER_FINGERPRINT) is False
        assert len((await look_up(shared, mine, b"another one!")).owned) == 10
        assert len((await look_up(shared, make_keys(3, "claimed"), b"another one!")).owned) == 3
        assert len((await look_up(shared, other)).known) == 10


@pytest.mark.parametrize("fingerprint", [FINGERPRINT, FINGERPRINT[:16], FINGERPRINT[:20]])
def test_five_thousand_keys_go_and_nobody_else_s(redis_server: RedisServer, fingerprint: str) -> None:
    """A few hundred at a time, without blocking Redis; its first sixteen digits are enough to name a model."""
    control = redis_server._control
    control.mset(dict.fromkeys([*names(5000, FINGERPRINT), *names(50, OTHER_FINGERPRINT), *STRANGERS], "x"))
    assert asyncio.run(clear(parse_redis_url(redis_server.url), fingerprint)) == 5000
    mark = f"reranker:2:cleared:{FINGERPRINT[:16]}"
    calls = calls_of(redis_server)
    assert {key.decode() for key in control.scan_iter()} == {*names(50, OTHER_FINGERPRINT), *STRANGERS, mark}
    assert 86_000 < control.ttl(mark) <= 86_400
    assert 5000 <= calls["unlink"] < 6000  # SCAN may name a key twice
    assert calls["scan"] > 5
    assert {"del", "flushdb", "keys"}.isdisjoint(calls)


def test_every_clear_leaves_another_mark(redis_server: RedisServer) -> None:
    """Also where there was nothing to drop: workers have memories of their own."""
    marks = set()
    for _ in range(3):
        assert asyncio.run(clear(parse_redis_url(redis_server.url), FINGERPRINT)) == 0
        marks.add(redis_server._control.get(layout.cleared_key(FINGERPRINT)))
    assert len(marks) == 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_cluster_is_cleared_on_all_of_its_nodes(redis_cluster: RedisCluster, cluster_client: ClusterClient) -> None:
    """Its keys lie in many slots."""
    kept = [*names(30, OTHER_FINGERPRINT), *STRANGERS]
    for key in [*names(1200, FINGERPRINT), *kept]:
        cluster_client.set(key, "x")
    assert min(server._control.dbsize() for server in redis_cluster.servers) > 300
    assert asyncio.run(clear(parse_redis_url(redis_cluster.url), FINGERPRINT)) == 1200
    left = {key.decode() for server in redis_cluster.servers for key in server._control.scan_iter()}
    assert left == {*kept, layout.cleared_key(FINGERPRINT)}


def test_the_program_says_what_it_did(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line."""
    redis_server._control.mset(dict.fromkeys(names(7, FINGERPRINT), "x"))
    assert run(monkeypatch, "--fingerprint", FINGERPRINT, REDIS_ENABLED="true", REDIS_URL=redis_server.url) == 0
    said = capsys.readouterr()
    assert said.out == "7 keys dropped; entry workers that use this Redis forget within a second\n"
    assert said.err == ""


@pytest.mark.parametrize(
    "fingerprint", ["", "0123456789abcde", FINGERPRINT + "0", FINGERPRINT.upper(), "*" * 16, "latest-and-best-model"]
)
def test_what_is_no_fingerprint_is_refused(fingerprint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern could drop everybody's keys; nothing is connected to."""
    end = run(monkeypatch, f"--fingerprint={fingerprint}", REDIS_ENABLED="true", REDIS_URL="redis://:hunter2@127.0.0.1:1/0")
    assert end == "error: the fingerprint is at least 16 hex digits: /health shows it as model.fingerprint"


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({}, "error: REDIS_ENABLED is not true: set it and REDIS_URL as for the server"),
        ({"REDIS_URL": "redis://127.0.0.1:1"}, "error: REDIS_ENABLED is not true: set it and REDIS_URL as for the server"),
        ({"REDIS_ENABLED": "perhaps"}, "error: REDIS_ENABLED: "),
        ({"REDIS_ENABLED": "true", "REDIS_URL": "http://:hunter2@a"}, "error: REDIS_URL: "),
        ({"REDIS_ENABLED": "true", "REDIS_URL": "redis://:hunter2@127.0.0.1:1"}, "error: Redis at REDIS_URL did not do it ("),
        (
            {"REDIS_ENABLED": "true", "REDIS_URL": "redis+cluster://:hunter2@127.0.0.1:1"},
            "error: Redis at REDIS_URL did not do it (",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    environment: dict[str, str], line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a traceback and without the password; a text makes the exit code 1."""
    end = run(monkeypatch, "--fingerprint", FINGERPRINT, **environment)
    assert isinstance(end, str)
    assert end.startswith(line)
    assert "\n" not in end
    assert "hunter2" not in end
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0?colour=red", "rediss://127.0.0.1:1/?ssl_cert_reqs=maybe"])
def test_an_option_that_the_client_does_not_know_is_said_in_one_line(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the start of the server."""
    end = run(monkeypatch, "--fingerprint", FINGERPRINT, REDIS_ENABLED="true", REDIS_URL=url)
    assert str(end).startswith("error: REDIS_URL")


def test_a_replica_or_a_wrong_password_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is dropped and no worker forgets."""
    with RedisServer(requirepass="right") as server:
        server._control.mset(dict.fromkeys(names(7, FINGERPRINT), "x"))
        server._control.replicaof("127.0.0.1", 1)
        for url, kind in ((server.url, "ReadOnlyError"), (server.url.replace("right", "wrong"), "AuthenticationError")):
            end = run(monkeypatch, "--fingerprint", FINGERPRINT, REDIS_ENABLED="true", REDIS_URL=url)
            assert end == f"error: Redis at REDIS_URL did not do it ({kind})"
        assert server._control.dbsize() == 7
