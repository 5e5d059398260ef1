"""Callers as an ASGI server tells of them, and tests that run for a bounded time."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.requests import Request
from starlette.types import Message

GONE: Message = {"type": "http.disconnect"}


class Caller:
    """What a server says of a connection: chunks of a body, then that the caller has left once `left` is set."""

    def __init__(self, *chunks: bytes, ends: bool = True, **headers: str) -> None:
        self.left = asyncio.Event()
        self.received = 0
        self._messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
        if ends:
            self._messages.append({"type": "http.request", "body": b"", "more_body": False})
        pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        self.request = Request({"type": "http", "method": "POST", "path": "/rerank", "headers": pairs}, self._receive)

    async def _receive(self) -> Message:
        self.received += 1
        if self._messages:
            return self._messages.pop(0)
        await self.left.wait()
        return GONE


def played(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test, but not for ever."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(**fixtures), 10))

    return run
