"""The id of a request: in its answer, and in every log line about it."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from contextvars import ContextVar

HEADER = b"x-request-id"
# Without spaces and line ends, so that no caller writes what looks like a log line of ours.
_GIVEN = re.compile(rb"[\x21-\x7e]{1,128}")
_CURRENT = ContextVar("request_id", default="")


def begin(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Take the caller's id where it is short and printable, or make one; it is current() in this context from now on."""
    given = next((value for name, value in headers if name == HEADER), b"")
    name = given if _GIVEN.fullmatch(given) else secrets.token_hex(16).encode()
    _CURRENT.set(name.decode())
    return name


def current() -> str:
    """Return the id of the request that this context works for; empty where it works for none."""
    return _CURRENT.get()
