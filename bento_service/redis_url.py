"""REDIS_URL read: which kind of Redis, where; without redis itself, so that settings.py can check it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

Kind = Literal["single", "sentinel", "cluster"]
FORMS = "redis://, rediss://, unix://, redis+sentinel://host:port,host:port/service/db or redis+cluster://host:port,host:port"
# Of a single server's URL; others would change what redis-py answers, or are none of its options.
_OPTIONS = frozenset(
    [
        "db",
        "username",
        "password",
        "client_name",
        "health_check_interval",
        "ssl_ca_certs",
        "ssl_certfile",
        "ssl_keyfile",
        "ssl_cert_reqs",
        "ssl_check_hostname",
    ]
)
_DEFAULT_PORTS = {"single": 6379, "sentinel": 26379, "cluster": 6379}


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where Redis is. url: as given, for a single server · nodes: sentinels, or first nodes of a cluster · service: the sentinels' name for the master."""

    kind: Kind
    url: str = field(repr=False)
    nodes: tuple[tuple[str, int], ...] = ()
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    service: str = ""
    db: int = 0


def parse_redis_url(url: str) -> RedisAddress:
    """Read a URL; ValueError, which never repeats it (it may hold a password), says what is wrong."""
    scheme, separator, rest = url.partition("://")
    if not separator or not rest:
        raise ValueError(f"this is no URL of a Redis: write {FORMS}")
    if scheme in ("redis", "rediss"):
        return _server(url)
    if scheme == "unix":
        parts = _split(url)
        if parts.hostname or not parts.path.startswith("/"):
            raise ValueError("a unix:// URL needs an absolute path after a third slash: unix:///run/redis.sock?db=0")
        _check_options(parts)
        return RedisAddress("single", url)
    if scheme == "redis+sentinel":
        return _sentinel(url, rest)
    if scheme == "redis+cluster":
        return _cluster(url, rest)
    raise ValueError(f"the URL begins like no kind of Redis known here: write {FORMS}")


def _server(url: str) -> RedisAddress:
    parts = _split(url)
    if not parts.hostname:
        raise ValueError("the URL names no host: write redis://host:6379/0")
    _database(parts.path.removeprefix("/"))
    _check_options(parts)
    return RedisAddress("single", url)


def _split(url: str) -> SplitResult:
    """Split a URL; urllib's own words hold parts of it."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError(
            "its host or port cannot be read (encode special characters as %40): write redis://host:6379/0"
        ) from None
    return parts


def _check_options(parts: SplitResult) -> None:
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in _OPTIONS:
            raise ValueError(f"the URL has an option that is not offered: only {', '.join(sorted(_OPTIONS))} are")
        if name == "db":
            _database(value)


def _sentinel(url: str, rest: str) -> RedisAddress:
    authority, _, path = rest.partition("/")
    service, _, db = path.partition("/")
    if not service or "?" in service:
        raise ValueError("the URL names no service: write redis+sentinel://host:26379,host:26379/mymaster/0")
    username, password, nodes = _authority(authority, "sentinel")
    return RedisAddress("sentinel", url, nodes, username, password, unquote(service), _database(db))


def _cluster(url: str, rest: str) -> RedisAddress:
    authority, _, path = rest.partition("/")
    if path not in ("", "0"):
        raise ValueError("a Redis Cluster has no databases but 0: end the URL after the last host:port")
    username, password, nodes = _authority(authority, "cluster")
    return RedisAddress("cluster", url, nodes, username, password)


def _authority(authority: str, kind: Kind) -> tuple[str | None, str | None, tuple[tuple[str, int], ...]]:
    """Read [user][:password]@host:port,host:port."""
    credentials, _, hosts = authority.rpartition("@")
    if "," in credentials:
        raise ValueError(
            "the URL's hosts cannot be read: write user:password@ once, before the first host:port, and encode special characters"
        )
    username, _, password = credentials.partition(":")
    nodes = tuple(_node(part, _DEFAULT_PORTS[kind]) for part in hosts.split(","))
    return unquote(username) or None, unquote(password) or None, nodes


def _node(text: str, default_port: int) -> tuple[str, int]:
    parts = _split(f"//{text}")
    if not parts.hostname or parts.path or parts.query:
        raise ValueError("the URL's hosts cannot be read: write host:port, with commas between them")
    return parts.hostname, default_port if parts.port is None else parts.port


def _database(text: str) -> int:
    if text and not text.isdecimal():
        raise ValueError("the URL's database is no number: write /0 at its end")
    return int(text or 0)
