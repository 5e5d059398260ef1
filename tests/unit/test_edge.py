"""The edge: bodies are read no further than the limit, and callers that leave take their work along."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from bento_service.body import ClientGone, read_body
from bento_service.edge import unless_gone
from bento_service.errors import BodyTooLarge, InvalidRequest

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


def _played(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test, but not for ever."""

    @functools.wraps(test)
    def played(**fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(**fixtures), 10))

    return played


@pytest.mark.parametrize("chunks", [[], [b""], [b"0123456789"], [b"01234", b"56789"], [b"", b"0", b"123456789", b""]])
@_played
async def test_a_body_up_to_the_limit_is_read_whole(chunks: Sequence[bytes]) -> None:
    """In as many pieces as it comes."""
    body = b"".join(chunks)
    assert await read_body(Caller(*chunks).request, 10) == body
    assert await read_body(Caller(*chunks, content_length=str(len(body))).request, 10) == body


@pytest.mark.parametrize(
    ("headers", "chunks", "received"),
    [
        ({"content_length": "11"}, [b"0" * 11], 0),
        ({"content_length": "99999999999999999999"}, [b"0"], 0),
        ({}, [b"0" * 11, b"1"], 1),
        ({}, [b"0" * 6, b"1" * 6, b"2" * 6], 2),
        ({"content_length": "5"}, [b"0" * 6, b"1" * 6, b"2" * 6], 2),
        ({"content_length": "-1"}, [b"0" * 11], 1),
        ({"content_length": "five"}, [b"0" * 11], 1),
    ],
)
@_played
async def test_a_body_over_the_limit_is_read_no_further(headers: dict[str, Any], chunks: list[bytes], received: int) -> None:
    """Not at all where its length is declared, else to the piece that is too much; a false declaration helps nobody."""
    caller = Caller(*chunks, **headers)
    with pytest.raises(BodyTooLarge, match="10 bytes"):
        await read_body(caller.request, 10)
    assert caller.received == received


@_played
async def test_a_caller_that_leaves_while_sending_is_gone() -> None:
    """No failure of the server: it is not logged and counted as one."""
    caller = Caller(b'{"query', ends=False)
    caller.left.set()
    with pytest.raises(ClientGone):
        await read_body(caller.request, 100)


async def _read(caller: Caller) -> Request:
    await caller.request.body()
    return caller.request


@_played
async def test_work_that_ends_first_is_the_answer() -> None:
    """Its value or its error."""

    async def work(error: Exception | None) -> str:
        if error:
            raise error
        return "answer"

    request = await _read(Caller())
    assert await unless_gone(request, work(None)) == "answer"
    with pytest.raises(InvalidRequest, match="wrong"):
        await unless_gone(request, work(InvalidRequest("wrong")))


@pytest.mark.parametrize("leaves", [True, False], ids=["the caller leaves", "the server's time-out"])
@_played
async def test_work_that_nobody_waits_for_is_cancelled_and_has_cleaned_up(leaves: bool) -> None:
    """Before unless_gone returns."""
    begun, cleaned = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            cleaned.set()

    caller = Caller()
    waiting = asyncio.create_task(unless_gone(await _read(caller), work()))
    await begun.wait()
    caller.left.set() if leaves else waiting.cancel()
    with pytest.raises(ClientGone if leaves else asyncio.CancelledError):
        await waiting
    assert cleaned.is_set()
