"""REDIS_URL: every kind of Redis is read, everything else is refused, and no password is ever repeated."""

from __future__ import annotations

import pytest

from bento_service.redis_url import RedisAddress, parse_redis_url

SECRET = "hunter2"


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://localhost/",
        "redis://localhost:6379/0",
        "redis://localhost:6379/15",
        "redis://user@localhost",
        "redis://:p%40ss%2Fword@localhost:1/2",
        "redis://user:p%3Ass@10.0.0.1:65535/2",
        "redis://[::1]/0",
        "redis://user:word@[fe80::1]:7000/3",
        "redis://localhost/0?health_check_interval=5",
        "rediss://localhost:6380/1",
        "rediss://user:word@localhost?ssl_cert_reqs=none",
        "unix:///run/redis.sock",
        "unix:///run/redis.sock?db=3",
        "unix://user:word@/run/redis.sock?db=3",
    ],
)
def test_a_single_server_keeps_its_url_for_the_client_to_read(url: str) -> None:
    """What it means is redis-py's business, options included."""
    assert parse_redis_url(url) == RedisAddress("single", url)


@pytest.mark.parametrize(("scheme", "path", "port"), [("redis+sentinel", "/mymaster", 26379), ("redis+cluster", "", 6379)])
@pytest.mark.parametrize(
    ("hosts", "nodes"),
    [
        ("a", [("a", None)]),
        ("a:1", [("a", 1)]),
        ("a:0", [("a", 0)]),
        ("a:1,b:2,c:65535", [("a", 1), ("b", 2), ("c", 65535)]),
        ("a,b:2,c", [("a", None), ("b", 2), ("c", None)]),
        ("redis-0.redis.svc.cluster.local:7000,10.0.0.1", [("redis-0.redis.svc.cluster.local", 7000), ("10.0.0.1", None)]),
        ("[::1]:7000,[fe80::2]", [("::1", 7000), ("fe80::2", None)]),
    ],
)
def test_several_nodes_are_read_in_their_order(
    scheme: str, path: str, port: int, hosts: str, nodes: list[tuple[str, int | None]]
) -> None:
    """A node without a port has its kind's own."""
    address = parse_redis_url(f"{scheme}://{hosts}{path}")
    assert address.nodes == tuple((host, port if given is None else given) for host, given in nodes)
    assert (address.username, address.password, address.db) == (None, None, 0)


@pytest.mark.parametrize(("scheme", "path"), [("redis+sentinel", "/mymaster"), ("redis+cluster", "")])
@pytest.mark.parametrize(
    ("credentials", "username", "password"),
    [
        (":word", None, "word"),
        ("user:word", "user", "word"),
        ("user", "user", None),
        ("user:", "user", None),
        ("", None, None),
        (":p%40ss%2Fw%3Ard%2C%25", None, "p@ss/w:rd,%"),
        ("us%3Aer:w%C3%B6rd", "us:er", "wörd"),
        ("user:a:b@c", "user", "a:b@c"),
    ],
)
def test_users_and_passwords_are_decoded(
    scheme: str, path: str, credentials: str, username: str | None, password: str | None
) -> None:
    """They stand once, before the first node."""
    address = parse_redis_url(f"{scheme}://{credentials}@a:1,b:2{path}")
    assert (address.username, address.password, address.nodes) == (username, password, (("a", 1), ("b", 2)))


@pytest.mark.parametrize(
    ("path", "service", "db"),
    [
        ("mymaster", "mymaster", 0),
        ("mymaster/", "mymaster", 0),
        ("mymaster/0", "mymaster", 0),
        ("my%20master/12", "my master", 12),
    ],
)
def test_sentinels_name_a_service_and_a_database(path: str, service: str, db: int) -> None:
    """The database may be left out."""
    address = parse_redis_url(f"redis+sentinel://a/{path}")
    assert (address.kind, address.service, address.db) == ("sentinel", service, db)


@pytest.mark.parametrize("path", ["", "/", "/0"])
def test_a_cluster_has_database_0_alone(path: str) -> None:
    """Saying so is no mistake."""
    address = parse_redis_url(f"redis+cluster://a{path}")
    assert (address.kind, address.service, address.db) == ("cluster", "", 0)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "no URL"),
        ("localhost:6379", "no URL"),
        ("redis://", "no URL"),
        ("redis:/localhost", "no URL"),
        ("http://localhost:6379", "no kind of Redis"),
        ("REDIS+CLUSTERS://localhost", "no kind of Redis"),
        ("redis+unix:///run/redis.sock", "no kind of Redis"),
        ("redis://:hunter2@a?colour=red", "option that is not offered"),
        ("redis://:hunter2@a?decode_responses=true", "option that is not offered"),
        ("unix:///run/redis.sock?retry=1", "option that is not offered"),
        ("redis://:hunter2@a?db=x", "database is no number"),
        ("redis:///0", "names no host"),
        ("redis://:6379/0", "names no host"),
        ("redis://user:hunter2@/0", "names no host"),
        ("redis://user:hunter2@localhost:port/0", "host or port cannot be read"),
        ("redis://user:hunter2@localhost:65536/0", "host or port cannot be read"),
        ("redis://user:hunter2@localhost:-1/0", "host or port cannot be read"),
        ("rediss://user:hunter2@localhost:1.5/0", "host or port cannot be read"),
        ("redis://:hunter2@localhost/zero", "database is no number"),
        ("redis://:hunter2@localhost/-1", "database is no number"),
        ("redis://localhost/0/hunter2", "database is no number"),
        ("unix://", "no URL"),
        ("unix://:hunter2@run?db=0", "absolute path"),
        ("redis+sentinel://:hunter2@a:1,b:2", "names no service"),
        ("redis+sentinel://:hunter2@a:1/", "names no service"),
        ("redis+sentinel://:hunter2@a:1//0", "names no service"),
        ("redis+sentinel://:hunter2@a:1/mymaster/zero", "database is no number"),
        ("redis+sentinel://:hunter2@a:1/mymaster/0/1", "database is no number"),
        ("redis+sentinel://:hunter2@a:1/mymaster/0?db=1", "database is no number"),
        ("redis+sentinel://:hunter2@/mymaster", "hosts cannot be read"),
        ("redis+cluster://:hunter2@a:1/1", "no databases but 0"),
        ("redis+cluster://:hunter2@a:1/0/0", "no databases but 0"),
        ("redis+cluster://:hunter2@a:1,", "hosts cannot be read"),
        ("redis+cluster://:hunter2@a,,b", "hosts cannot be read"),
        ("redis+cluster://:hunter2@a:port", "host or port cannot be read"),
        ("redis+cluster://:hunter2@a:65536", "host or port cannot be read"),
        ("redis+cluster://:hunter2@::1:7000", "host or port cannot be read"),
        ("redis+cluster://:hunter2@[::1", "host or port cannot be read"),
        ("redis+cluster://:hunter2@a:1?ssl=true", "hosts cannot be read"),
        ("redis://:hunter2@[::1/0", "host or port cannot be read"),
        ("unix://:hunter2@[::1/0", "host or port cannot be read"),
        ("redis://:hunter2℀@localhost/0", "host or port cannot be read"),
        ("redis+cluster://:hunter2@a℀b", "host or port cannot be read"),
    ],
)
def test_what_is_no_redis_is_refused_in_one_line_without_the_password(url: str, reason: str) -> None:
    """Neither the URL nor a part of it that may be a password is repeated."""
    with pytest.raises(ValueError, match=reason) as caught:
        parse_redis_url(url)
    message = str(caught.value)
    assert "\n" not in message
    assert SECRET not in message
    assert len(url) < 10 or url not in message


@pytest.mark.parametrize("url", ["unix://:hunter2℀@/run/redis.sock", "user:hunter2://word@localhost:6379"])
def test_a_password_that_is_not_encoded_is_not_repeated_either(url: str) -> None:
    """It is a mistake to write it so, and mistakes are what messages are about."""
    message = ""
    try:
        parse_redis_url(url)
    except ValueError as error:
        message = str(error)
    assert SECRET not in message


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://a/mymaster?db=1",
        "redis+sentinel://:hunter2@a,:hunter2@b/mymaster",
        "redis+cluster://:hunter2@a:1,:hunter2@b:2",
    ],
)
def test_what_would_be_misread_is_refused(url: str) -> None:
    """Otherwise it is a wrong password or an unknown service, found out long after the start."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        parse_redis_url(url)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("url", ["unix://run/redis.sock", "unix://localhost/run/redis.sock"])
def test_a_socket_without_its_third_slash_is_refused(url: str) -> None:
    """It would be another socket."""
    with pytest.raises(ValueError, match="absolute path"):
        parse_redis_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:hunter2@localhost/0",
        "unix://:hunter2@/run/redis.sock",
        "redis+sentinel://:hunter2@a:1/mymaster",
        "redis+cluster://user:hunter2@a:1",
    ],
)
def test_an_address_can_be_printed(url: str) -> None:
    """Its kind and nodes are shown, its URL and password are not."""
    address = parse_redis_url(url)
    assert address.kind in repr(address)
    assert SECRET not in repr(address)
    assert SECRET not in str(address)


def test_an_address_does_not_change() -> None:
    """It is shared by the check at the start and the client."""
    address = parse_redis_url("redis://localhost")
    with pytest.raises(AttributeError):
        address.db = 3  # type: ignore[misc]
