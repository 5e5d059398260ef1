"""Settings of the caches: their defaults, what is refused, and that a password stays a secret."""

from __future__ import annotations

import pytest

from bento_service.errors import SettingsError
from bento_service.redis_url import RedisAddress
from bento_service.settings import REFUSED, known_variables, load_settings

SECRET = "hunter2"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset every variable that the service knows or refuses."""
    for name in [*known_variables(), *REFUSED]:
        monkeypatch.delenv(name, raising=False)


def test_the_defaults_are_the_documented_ones() -> None:
    """Memory of its own for five minutes, and no Redis."""
    settings = load_settings()
    assert (settings.prediction_cache, settings.cache_entries, settings.local_cache_entries) == (True, 100_000, 100_000)
    assert (settings.cache_ttl_seconds, settings.cache_sweep_seconds, settings.redis_ttl_seconds) == (300.0, 3600.0, 600.0)
    assert (settings.redis_enabled, settings.redis_address, settings.redis_timeout_seconds) == (False, None, 0.25)


def test_variables_reach_their_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the names that other rerankers use, where they have one."""
    given = {"RERANKER_CACHE_ENTRIES": "7", "CACHE_TTL_SECONDS": "1.5", "CLEAR_CACHE_INTERVAL": "2", "REDIS_TTL_SECONDS": "3"}
    for name, value in (given | {"RERANKER_REDIS_TIMEOUT": "0.5"}).items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert (settings.cache_entries, settings.cache_ttl_seconds, settings.cache_sweep_seconds) == (7, 1.5, 2.0)
    assert (settings.redis_ttl_seconds, settings.redis_timeout_seconds) == (3.0, 0.5)


@pytest.mark.parametrize(("value", "entries"), [("true", 7), ("1", 7), ("false", 0), ("0", 0), ("FALSE", 0)])
def test_the_cache_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, value: str, entries: int) -> None:
    """A cache of no entries is none, whatever its size would be."""
    monkeypatch.setenv("RERANKER_CACHE_ENTRIES", "7")
    monkeypatch.setenv("ENABLE_PREDICTION_CACHE", value)
    assert load_settings().local_cache_entries == entries


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[
            (name, value)
            for name in ("CACHE_TTL_SECONDS", "CLEAR_CACHE_INTERVAL", "REDIS_TTL_SECONDS")
            for value in ("0", "-1", "nan", "1h")
        ],
        *[("RERANKER_REDIS_TIMEOUT", value) for value in ("0", "-1", "10.1", "nan", "inf")],
        *[("RERANKER_CACHE_ENTRIES", value) for value in ("0", "-1", "1.5")],
        *[(name, "perhaps") for name in ("ENABLE_PREDICTION_CACHE", "REDIS_ENABLED")],
        *[
            ("REDIS_URL", value)
            for value in ("localhost:6379", "http://localhost", "redis://localhost:port", "redis+sentinel://a:1")
        ],
    ],
)
def test_a_bad_value_names_its_variable_in_one_line(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """The start stops with a line that an operator can act on."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value).startswith(f"{name}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["CACHE_TTL_SECONDS", "CLEAR_CACHE_INTERVAL", "REDIS_TTL_SECONDS"])
@pytest.mark.parametrize("value", ["inf", "1e15"])
def test_a_time_beyond_all_use_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """Redis could not keep it: every store would fail, and leave pages that live for ever."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"^{name}: "):
        load_settings()


@pytest.mark.parametrize("enabled", ["true", "false"])
@pytest.mark.parametrize(
    "url", ["redis://:hunter2@localhost:port", "redis+cluster://:hunter2@a/1", "hunter2", "http://:hunter2@a"]
)
def test_a_wrong_url_is_refused_without_its_password(monkeypatch: pytest.MonkeyPatch, enabled: str, url: str) -> None:
    """Even while Redis is off: silence would last until it is switched on."""
    monkeypatch.setenv("REDIS_ENABLED", enabled)
    monkeypatch.setenv("REDIS_URL", url)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value).startswith("REDIS_URL: ")
    assert SECRET not in f"{caught.value}{caught.value!r}{caught.value.__cause__}"


def test_the_address_is_known_only_while_redis_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL alone switches nothing on."""
    url = "redis://:hunter2@localhost/0"
    monkeypatch.setenv("REDIS_URL", url)
    assert load_settings().redis_address is None
    monkeypatch.setenv("REDIS_ENABLED", "true")
    assert load_settings().redis_address == RedisAddress("single", url)


def test_redis_is_on_this_machine_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """REDIS_ENABLED alone is enough there."""
    monkeypatch.setenv("REDIS_ENABLED", "true")
    assert load_settings().redis_address == RedisAddress("single", "redis://localhost:6379/0")


def test_settings_can_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """And dumped: the password is in none of it."""
    monkeypatch.setenv("REDIS_ENABLED", "true")
    monkeypatch.setenv("REDIS_URL", "redis://user:hunter2@localhost/0")
    settings = load_settings()
    assert SECRET not in f"{settings}{settings!r}{settings.model_dump()}{settings.model_dump_json()}{settings.redis_address}"
