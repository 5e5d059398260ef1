"""How bodies come in: whole, within limits of size, time and memory, and unpacked.

A sender costs no more than these limits, however slowly it sends, whatever its gzip expands to and how many of it there are.
"""

from __future__ import annotations

import asyncio
import zlib
from types import TracebackType
from typing import Self

from starlette.requests import ClientDisconnect, Request

from bento_service.errors import BodyTimeout, BodyTooLarge, InvalidRequest, UnsupportedMedia
from bento_service.turns import Turns, bodies_full

_GZIP_WINDOW = 16 + zlib.MAX_WBITS
_MOST_EXPANSION = 1032  # gzip's
_LENGTH_DIGITS = 15


class ClientGone(Exception):
    """The caller closed the connection before its answer."""


class Intake:
    """Reads the bodies of one process.

    max_bytes: of one body, as sent and as unpacked · max_memory_bytes: of all bodies together, from their first byte until
    their requests are answered · timeout_seconds: from a body's first byte to its last · turns: in which big bodies are unpacked.
    """

    def __init__(self, *, max_bytes: int, max_memory_bytes: int, timeout_seconds: float, turns: Turns) -> None:
        self._turns = turns
        self._max_bytes = max_bytes
        self._max_memory_bytes = max(max_bytes, max_memory_bytes)
        self._timeout_seconds = timeout_seconds
        self._held_bytes = 0
        self._reading: set[Place] = set()

    @property
    def held_bytes(self) -> int:
        """Bytes of all bodies whose requests are not answered yet."""
        return self._held_bytes

    def place(self) -> Place:
        """Make a place for one request's body; leaving it (`with`) gives its memory back."""
        return Place(self)

    async def _read(self, place: Place, request: Request) -> bytes:
        unpack = _is_gzip(request)
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and (len(declared) > _LENGTH_DIGITS or int(declared) > self._max_bytes):
            raise self._too_large()
        body = await self._receive(place, request)
        if unpack:
            # In a thread: zlib lets the others run meanwhile, and a few kilobytes may expand to all that is allowed.
            async with self._turns.turn(min(self._max_bytes, _MOST_EXPANSION * len(body))):
                body = await asyncio.to_thread(_unpack, body, self._max_bytes)
            if len(body) > self._max_bytes:
                raise self._too_large()
            self._grow(place, len(body) - place.size_bytes)
        return body

    async def _receive(self, place: Place, request: Request) -> bytes:
        body = bytearray()  # a list of chunks would take forty times as much where they are of one byte
        self._reading.add(place)
        try:
            async with asyncio.timeout(self._timeout_seconds) as place.limit:
                async for chunk in request.stream():
                    if place.size_bytes + len(chunk) > self._max_bytes:
                        raise self._too_large()
                    body += chunk
                    self._grow(place, len(chunk))
        except ClientDisconnect:
            raise ClientGone from None
        except TimeoutError:
            raise bodies_full() if place.pushed_out else self._timed_out() from None
        finally:
            self._reading.discard(place)
        return bytes(body)

    def _grow(self, place: Place, size_bytes: int) -> None:
        """Count what has come; where that is too much, the largest body that is still coming has to go."""
        place.size_bytes += size_bytes
        self._held_bytes += size_bytes
        while self._held_bytes > self._max_memory_bytes:
            largest = max(self._reading | {place}, key=lambda each: each.size_bytes)
            self._free(largest)
            if largest is place:
                raise bodies_full()
            largest.push_out()
            self._reading.discard(largest)

    def _free(self, place: Place) -> None:
        self._held_bytes -= place.size_bytes
        place.size_bytes = 0

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body is over the limit of {self._max_bytes} bytes: send fewer or shorter documents")

    def _timed_out(self) -> BodyTimeout:
        return BodyTimeout(f"the body did not come within {self._timeout_seconds:g} seconds: send it whole, or in smaller parts")


class Place:
    """What one request's body takes of the memory for bodies."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self.size_bytes = 0
        self.limit: asyncio.Timeout | None = None
        self.pushed_out = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._intake._free(self)  # noqa: SLF001  a place is the intake's own

    async def read(self, request: Request) -> bytes:
        """Read and unpack a request's body, no further than the limits.

        Raises BodyTooLarge, BodyTimeout, BodiesFull, UnsupportedMedia, InvalidRequest or ClientGone.
        """
        return await self._intake._read(self, request)  # noqa: SLF001  a place is the intake's own

    def push_out(self) -> None:
        """End the reading now, so that others have room."""
        self.pushed_out = True
        if self.limit and not self.limit.expired():
            self.limit.reschedule(asyncio.get_running_loop().time())


def _is_gzip(request: Request) -> bool:
    encodings = [each.strip().lower() for value in request.headers.getlist("content-encoding") for each in value.split(",")]
    named = [each for each in encodings if each not in ("", "identity")]
    if named not in ([], ["gzip"], ["x-gzip"]):
        raise UnsupportedMedia("only gzip is unpacked: set content-encoding to gzip, or send the body as it is")
    return bool(named)


def _unpack(body: bytes, max_bytes: int) -> bytes:
    """Unpack gzip, one byte beyond the limit at most; raises InvalidRequest."""
    stream = zlib.decompressobj(_GZIP_WINDOW)
    try:
        unpacked = stream.decompress(body, max_bytes + 1)
    except zlib.error:
        raise InvalidRequest("the body is not gzip, as its content-encoding says", code="invalid_encoding") from None
    if len(unpacked) <= max_bytes and (not stream.eof or stream.unused_data):
        raise InvalidRequest("the gzip body is cut off, or more follows its end", code="invalid_encoding")
    return unpacked
