"""How HTTP is read."""

from __future__ import annotations

from importlib import import_module

import pytest
from uvicorn import config
from uvicorn.protocols.http.h11_impl import H11Protocol


def test_http_is_read_by_h11_whatever_is_installed(builtin_tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where uvicorn itself would choose otherwise."""
    assert builtin_tag  # which the room wants saved
    room = import_module("bento_service.service.http_server")
    monkeypatch.setitem(config.HTTP_PROTOCOLS, "auto", "http.client:HTTPConnection")
    room.read_by_h11()
    loaded = config.Config(lambda: None)
    loaded.load()
    assert loaded.http_protocol_class is H11Protocol
