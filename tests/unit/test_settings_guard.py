"""Settings of what comes from outside: keys stay secrets, limits are shared out among workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from bento_service.errors import SettingsError
from bento_service.settings import REFUSED, known_variables, load_settings

REPOSITORY = Path(__file__).resolve().parents[2]
SECRET = "planted-key"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset every variable that the service knows or refuses."""
    for name in [*known_variables(), *REFUSED]:
        monkeypatch.delenv(name, raising=False)


def test_everybody_may_come_in_by_default() -> None:
    """And no page of another origin."""
    settings = load_settings()
    assert (settings.api_key_list, settings.api_keys_file, settings.cors_origin_list) == ([], None, [])
    assert settings.open_pages


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spaces and empty parts do not matter, nor a slash behind an origin."""
    monkeypatch.setenv("RERANKER_API_KEYS", f" {SECRET} ,, b,")
    monkeypatch.setenv("RERANKER_CORS_ORIGINS", "https://a.example/, http://b.example:8080")
    settings = load_settings()
    assert settings.api_key_list == [SECRET, "b"]
    assert settings.cors_origin_list == ["https://a.example", "http://b.example:8080"]


def test_keys_show_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in what is printed of the settings nor in an error."""
    monkeypatch.setenv("RERANKER_API_KEYS", SECRET)
    settings = load_settings()
    assert SECRET not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"


def test_keys_that_are_none_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """An open door where somebody thought of a lock would be worse."""
    monkeypatch.setenv("RERANKER_API_KEYS", " , ,")
    with pytest.raises(SettingsError, match="RERANKER_API_KEYS: holds no key"):
        load_settings()


@pytest.mark.parametrize(("workers", "pairs", "memory"), [(1, 100, 64_000_000), (4, 25, 16_000_000), (256, 1, 1_000_000)])
def test_limits_are_shared_out_among_entry_workers(
    monkeypatch: pytest.MonkeyPatch, workers: int, pairs: int, memory: int
) -> None:
    """Each has room for one pair and for one body at least."""
    given = {"RERANKER_MAX_PAIRS_PER_KEY": 100, "RERANKER_MAX_BODY_MEMORY": 64_000_000, "RERANKER_MAX_BODY_BYTES": 1_000_000}
    for name, value in (given | {"RERANKER_WORKERS": workers}).items():
        monkeypatch.setenv(name, str(value))
    settings = load_settings()
    assert (settings.pairs_per_key_per_worker, settings.body_memory_bytes_per_worker) == (pairs, memory)


def test_the_load_balancers_know_the_defaults() -> None:
    """Bodies as large as are taken, answers as slow as they may be."""
    settings = load_settings()
    nginx, haproxy = ((REPOSITORY / "deploy" / name).read_text() for name in ("nginx.conf", "haproxy.cfg"))
    assert f"client_max_body_size {settings.max_body_bytes // 2**20}m;" in nginx
    assert f"req.body_size gt {settings.max_body_bytes} " in haproxy
    for text in (nginx, haproxy):
        assert "65s;" in text or "timeout server 65s " in text
    assert settings.service_timeout_seconds < 65
