"""Fixtures of several unit tests."""

from __future__ import annotations

import contextlib
import logging
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from parts import make_info
from prometheus_client import REGISTRY
from tokenizers import Tokenizer

from bento_service import scorer_link
from bento_service.metrics import EntryMetrics
from bento_service.tokenizer import PairTokenizer
from redis_servers import RedisCluster, RedisServer


@pytest.fixture
def entry_metrics() -> Iterator[EntryMetrics]:
    """Make metrics in a registry that no other test sees."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(REGISTRY, "_collector_to_names", {})
        patch.setattr(REGISTRY, "_names_to_collectors", {})
        yield EntryMetrics()


@pytest.fixture
def make_tokenizer(builtin_folder: Path) -> Iterator[Callable[..., PairTokenizer]]:
    """Offer tokenizers of the built-in model, of either kind; end their threads."""
    with contextlib.ExitStack() as stack:

        def make(
            kind: str = "bi-encoder",
            *,
            max_length: int = 256,
            workers: int = 1,
            room: type[PairTokenizer] = PairTokenizer,
            **info: Any,
        ) -> PairTokenizer:
            made = room(builtin_folder / "tokenizer.json", make_info(kind, **info), max_length=max_length, workers=workers)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture(scope="session")
def reference(builtin_folder: Path) -> Tokenizer:
    """Return the plain Rust tokenizer of the same file."""
    tokenizer = Tokenizer.from_file(str(builtin_folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@pytest.fixture
def short_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a second of the watch over a Scorer pass in a fiftieth."""
    for name in ("HEARTBEAT_SECONDS", "PROCESS_CHECK_SECONDS", "_RETRY_SECONDS"):
        monkeypatch.setattr(scorer_link, name, 0.02)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that does nothing, in the place of a Scorer's."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


@pytest.fixture(scope="session")
def _running_redis() -> Iterator[RedisServer]:
    """Start one server for all tests that leave it as it is."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_server(_running_redis: RedisServer) -> RedisServer:
    """Lend that server with nothing stored, counted or learnt."""
    control = _running_redis._control
    control.flushall()
    control.script_flush()
    control.config_resetstat()
    return _running_redis


@pytest.fixture(scope="session")
def _running_cluster() -> Iterator[RedisCluster]:
    """Start one cluster, which takes seconds."""
    with RedisCluster() as cluster:
        yield cluster


@pytest.fixture
def redis_cluster(_running_cluster: RedisCluster) -> RedisCluster:
    """Lend that cluster with nothing stored."""
    for server in _running_cluster.servers:
        server._control.flushall()
    return _running_cluster


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Offer the lines that the service has logged."""
    caplog.set_level(logging.INFO, logger="bentoml.reranker")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "bentoml.reranker"]
