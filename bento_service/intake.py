"""How bodies come in: whole, within limits of size, time and memory, and unpacked.

A sender costs no more than these limits, however slowly it sends, whatever its gzip expands to and how many of it there are.
"""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self, TypeVar

from starlette.requests import ClientDisconnect, Request

from bento_service.errors import BodyTimeout, BodyTooLarge, InvalidRequest, UnsupportedMedia
from bento_service.turns import BIG_BYTES, Effort, Turns, bodies_full

T = TypeVar("T")
_GZIP_WINDOW = 16 + zlib.MAX_WBITS
_MOST_EXPANSION = 1032  # gzip's
_LENGTH_DIGITS = 15


class ClientGone(Exception):
    """The caller closed the connection before its answer."""


class Intake:
    """Reads the bodies of one process.

    max_bytes: of one body, as sent and as unpacked · max_memory_bytes: of all bodies together, from their first byte until
    their requests are answered; small ones are taken in any case · timeout_seconds: from a body's first byte to its last.
    """

    def __init__(self, *, max_bytes: int, max_memory_bytes: int, timeout_seconds: float) -> None:
        self._max_bytes = max_bytes
        self._max_memory_bytes = max(max_bytes, max_memory_bytes)
        self._timeout_seconds = timeout_seconds
        self._held_bytes = 0
        self._reading: set[Share] = set()
        self._turns = Turns()

    @property
    def held_bytes(self) -> int:
        """Bytes of all bodies whose requests are not answered yet."""
        return self._held_bytes

    def share(self) -> Share:
        """Make a share for one request's body; leaving it (`with`) gives its memory back."""
        return Share(self)

    async def read(self, share: Share, request: Request) -> bytes:
        """Read a request's body as it was sent, no further than the limits.

        Raises BodyTooLarge, BodyTimeout, BodiesFull, UnsupportedMedia or ClientGone.
        """
        share.gzipped = _is_gzip(request)
        declared = declared_bytes(request.headers.get("content-length", ""))
        if declared is not None and declared > self._max_bytes:
            raise self._too_large()
        return await self._receive(share, request)

    async def fields(
        self, share: Share, body: bytes, parse: Callable[[bytes, Effort], Awaitable[T]], *, timeout_seconds: float
    ) -> T:
        """Parse what is in a body, unpacked if it is gzip, in its turn if it is or may be big.

        timeout_seconds: for the turn. Raises BodyTooLarge, BodiesFull, InvalidRequest, and what `parse` raises.
        """
        if share.gzipped:
            small = _unpack(body, BIG_BYTES) if len(body) <= BIG_BYTES else b""
            if 0 < len(small) <= BIG_BYTES:
                share.gzipped, body = False, small
        size = min(self._max_bytes, _MOST_EXPANSION * len(body)) if share.gzipped else len(body)
        async with self._turns.turn(size, timeout_seconds=timeout_seconds) as effort:
            if share.gzipped:
                # In a thread: zlib lets the others run meanwhile.
                body = await asyncio.to_thread(_unpack, body, self._max_bytes)
                if len(body) > self._max_bytes:
                    raise self._too_large()
            self._grow(share, len(body) - share.size_bytes)
            return await parse(body, effort)

    async def _receive(self, share: Share, request: Request) -> bytes:
        body = bytearray()  # a list of chunks would take forty times as much where they are of one byte
        self._reading.add(share)
        try:
            async with asyncio.timeout(self._timeout_seconds) as share.limit:
                async for chunk in request.stream():
                    if share.size_bytes + len(chunk) > self._max_bytes:
                        raise self._too_large()
                    body += chunk
                    self._grow(share, len(chunk))
            if share.pushed_out:
                raise bodies_full()
        except ClientDisconnect:
            raise ClientGone from None
        except TimeoutError:
            raise bodies_full() if share.pushed_out else self._timed_out() from None
        finally:
            self._reading.discard(share)
        return bytes(body)

    def _grow(self, share: Share, size_bytes: int) -> None:
        """Count what has come; where that is too much, the largest body that is still coming has to go."""
        share.size_bytes += size_bytes
        self._held_bytes += size_bytes
        if share.size_bytes <= BIG_BYTES:
            return
        while self._held_bytes > self._max_memory_bytes:
            largest = max(self._reading | {share}, key=lambda each: each.size_bytes)
            self.free(largest)
            if largest is share:
                raise bodies_full()
            largest.push_out()
            self._reading.discard(largest)

    def free(self, share: Share) -> None:
        """Give its memory back."""
        self._held_bytes -= share.size_bytes
        share.size_bytes = 0

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body is over the limit of {self._max_bytes} bytes: send fewer or shorter documents")

    def _timed_out(self) -> BodyTimeout:
        return BodyTimeout(f"the body did not come within {self._timeout_seconds:g} seconds: send it whole, or in smaller parts")


class Share:
    """What one request's body takes of the memory for bodies. gzipped: known once it is read."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self.size_bytes = 0
        self.limit: asyncio.Timeout | None = None
        self.pushed_out = False
        self.gzipped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._intake.free(self)

    def push_out(self) -> None:
        """End the reading now, so that others have room."""
        self.pushed_out = True
        if self.limit and not self.limit.expired():
            self.limit.reschedule(asyncio.get_running_loop().time())


def declared_bytes(content_length: str) -> float | None:
    """Read a Content-Length: None where it is no number, infinite where it has more digits than any body has bytes."""
    if not content_length.isdecimal():
        return None
    return int(content_length) if len(content_length) <= _LENGTH_DIGITS else math.inf


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
