"""Bodies come in within limits of size, time and memory, and are unpacked within them."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Sequence
from typing import Any

import pytest
from caller_parts import Caller, played

from bento_service import intake as room
from bento_service.errors import BodiesFull, BodyTimeout, BodyTooLarge, InvalidRequest, UnsupportedMedia
from bento_service.intake import ClientGone, Intake, Share
from bento_service.turns import Effort


def intake(max_bytes: int = 10, max_memory_bytes: int = 1_000_000, timeout_seconds: float = 5.0) -> Intake:
    """Make one with small limits."""
    return Intake(max_bytes=max_bytes, max_memory_bytes=max_memory_bytes, timeout_seconds=timeout_seconds)


async def read(caller: Caller, bodies: Intake) -> bytes:
    """Read a body and give its memory back."""
    with bodies.share() as share:
        return await whole(bodies, share, caller)


async def whole(bodies: Intake, share: Share, caller: Caller) -> bytes:
    """Read a body and unpack it."""

    async def as_it_is(body: bytes, _: Effort) -> bytes:
        return body

    return await bodies.fields(share, await bodies.read(share, caller.request), as_it_is, timeout_seconds=5.0)


@pytest.mark.parametrize("chunks", [[], [b""], [b"0123456789"], [b"01234", b"56789"], [b"", b"0", b"123456789", b""]])
@played
async def test_a_body_up_to_the_limit_is_read_whole(chunks: Sequence[bytes]) -> None:
    """In as many pieces as it comes."""
    body = b"".join(chunks)
    assert await read(Caller(*chunks), intake()) == body
    assert await read(Caller(*chunks, content_length=str(len(body))), intake()) == body


@pytest.mark.parametrize(
    ("headers", "chunks", "received"),
    [
        ({"content_length": "11"}, [b"0" * 11], 0),
        ({"content_length": "9" * 5000}, [b"0"], 0),
        ({}, [b"0" * 11, b"1"], 1),
        ({}, [b"0" * 6, b"1" * 6, b"2" * 6], 2),
        ({"content_length": "5"}, [b"0" * 6, b"1" * 6, b"2" * 6], 2),
        ({"content_length": "-1"}, [b"0" * 11], 1),
        ({"content_length": "five"}, [b"0" * 11], 1),
        ({"content_encoding": "gzip"}, [b"0" * 6, b"1" * 6, b"2" * 6], 2),
    ],
)
@played
async def test_a_body_over_the_limit_is_read_no_further(headers: dict[str, Any], chunks: list[bytes], received: int) -> None:
    """Not at all where its length is declared, else to the piece that is too much; a false declaration helps nobody."""
    caller, bodies = Caller(*chunks, **headers), intake()
    with pytest.raises(BodyTooLarge, match="10 bytes"):
        await read(caller, bodies)
    assert (caller.received, bodies.held_bytes) == (received, 0)


@played
async def test_a_caller_that_leaves_while_sending_is_gone_and_leaves_nothing() -> None:
    """No failure of the server: it is not logged and counted as one."""
    caller, bodies = Caller(b'{"query', ends=False), intake()
    caller.left.set()
    with pytest.raises(ClientGone):
        await read(caller, bodies)
    assert bodies.held_bytes == 0


@pytest.mark.parametrize("chunks", [[], [b'{"query']], ids=["declared and never sent", "half sent"])
@played
async def test_a_body_that_does_not_come_is_given_up(chunks: list[bytes]) -> None:
    """After the time-out, with nothing left of it."""
    bodies = intake(timeout_seconds=0.02)
    with pytest.raises(BodyTimeout, match=r"0\.02 seconds"):
        await read(Caller(*chunks, ends=False, content_length="10"), bodies)
    assert bodies.held_bytes == 0


@played
async def test_memory_is_held_until_the_request_is_answered() -> None:
    """A parsed body is no smaller than the bytes it came in."""
    bodies = intake()
    with bodies.share() as share:
        await bodies.read(share, Caller(b"0123456").request)
        assert bodies.held_bytes == 7
    assert bodies.held_bytes == 0


@played
async def test_where_memory_is_short_the_largest_body_that_still_comes_has_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-sent bodies of one caller do not keep out those of others."""
    monkeypatch.setattr(room, "BIG_BYTES", 5)
    bodies = intake(max_bytes=100, max_memory_bytes=250)
    hogs = [Caller(b"h" * size, ends=False) for size in (90, 95, 60)]
    tasks = [asyncio.create_task(read(hog, bodies)) for hog in hogs]
    while bodies.held_bytes < 245:  # noqa: ASYNC110  what has come is no event
        await asyncio.sleep(0)
    assert await read(Caller(b"honest"), bodies) == b"honest"
    with pytest.raises(BodiesFull) as failure:
        await tasks[1]
    assert failure.value.retry_after_seconds == 1
    assert not tasks[0].done()
    assert not tasks[2].done()
    for hog in hogs:
        hog.left.set()
    for task in (tasks[0], tasks[2]):
        with pytest.raises(ClientGone):
            await task
    assert bodies.held_bytes == 0


@played
async def test_what_is_being_answered_is_never_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was taken: the newcomer has to come again, unless it is small, and so are all that could fill the rest."""
    monkeypatch.setattr(room, "BIG_BYTES", 10)
    bodies = intake(max_bytes=100, max_memory_bytes=100)
    with bodies.share() as first:
        await bodies.read(first, Caller(b"f" * 95).request)
        with pytest.raises(BodiesFull):
            await read(Caller(b"s" * 11), bodies)
        with pytest.raises(BodiesFull):
            await read(Caller(gzip.compress(b"s" * 50), content_encoding="gzip"), bodies)
        assert await read(Caller(b"s" * 10), bodies) == b"s" * 10
        assert bodies.held_bytes == 95


@played
async def test_one_body_always_fits() -> None:
    """A memory limit below the limit of one body would refuse everything."""
    assert await read(Caller(b"0" * 10), intake(max_memory_bytes=1)) == b"0" * 10


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "x-gzip", "identity, gzip"])
@played
async def test_gzip_is_unpacked(encoding: str) -> None:
    """To the limit, and counted as what it is unpacked to."""
    bodies = intake(max_bytes=5000)
    with bodies.share() as share:
        assert await whole(bodies, share, Caller(gzip.compress(b"x" * 5000), content_encoding=encoding)) == b"x" * 5000
        assert bodies.held_bytes == 5000


@played
async def test_gzip_is_unpacked_no_further_than_the_limit() -> None:
    """A bomb of 0.1 MB that would expand to 100 MB costs the limit."""
    bodies = intake(max_bytes=1_100_000)
    bomb = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = b"".join(bomb.compress(b"\0" * 1_000_000) for _ in range(100)) + bomb.flush()
    assert len(packed) < 110_000
    with pytest.raises(BodyTooLarge):
        await read(Caller(packed, content_encoding="gzip"), bodies)
    assert bodies.held_bytes == 0


@pytest.mark.parametrize(
    "packed",
    [b"", b"{}", gzip.compress(b"whole")[:-1], gzip.compress(b"whole") + b"more", gzip.compress(b"a") + gzip.compress(b"b")],
    ids=["empty", "plain", "cut off", "more behind it", "two members"],
)
@played
async def test_what_is_no_gzip_is_a_clear_error(packed: bytes) -> None:
    """Its words do not repeat the body."""
    with pytest.raises(InvalidRequest, match="gzip") as failure:
        await read(Caller(packed, content_encoding="gzip"), intake(max_bytes=100))
    assert failure.value.code == "invalid_encoding"


@pytest.mark.parametrize("encoding", ["br", "zstd", "deflate", "gzip, gzip", "planted"])
@played
async def test_any_other_encoding_is_refused_unread(encoding: str) -> None:
    """The message says which one is read."""
    caller = Caller(b"x", content_encoding=encoding)
    with pytest.raises(UnsupportedMedia, match="gzip") as failure:
        await read(caller, intake())
    assert caller.received == 0
    assert "planted" not in failure.value.message
