"""A request's body parsed as JSON and nothing else, without holding up the other requests."""

from __future__ import annotations

import asyncio
import codecs
import json
import re
from typing import Any

from bento_service.errors import InvalidRequest
from bento_service.turns import Effort

# Any escaped surrogate: only such a body can hold a lone one, so only such a body is searched.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_NONCHARACTER = "\ufdd0"  # stands in for question marks; Unicode keeps it free for such uses
_MAX_DIGITS = 400  # of an integer; Python takes time in the square of them
_MAX_FLOAT_DIGITS = 40  # twice what any float needs; rounding the longest right takes Python forty times as long
# A value takes up to 0.7 µs to parse, whatever its size: the least that is allowed holds the others up for 15 ms at most.
_LEAST_VALUES, _VALUES_PER_DOCUMENT = 40_000, 20
_BYTES_PER_VALUE = 2  # at least: `1,`
_BEGINNINGS = (b",", b":", b"[", b"{")  # of values, outside of texts
_PIECE_BYTES, _PAUSE_SECONDS = 64 * 1024, 0.001  # a piece takes a fifth to the whole of the pause behind it


async def parse(max_documents: int, body: bytes, effort: Effort) -> dict[str, Any]:
    """Read a JSON object as parse_json does, a big one after a look at how many values it holds; effort: counts what it costs.

    Raises InvalidRequest.
    """
    most = max(_LEAST_VALUES, _VALUES_PER_DOCUMENT * max_documents)
    if len(body) > _BYTES_PER_VALUE * most:
        await _refuse_too_many_values(body, most, effort)
    with effort.counted():
        return parse_json(body)


def parse_json(body: bytes) -> dict[str, Any]:
    """Read a JSON object; lone surrogates become U+FFFD, NaN and Infinity are refused.

    Raises InvalidRequest, whose message never repeats the body.
    """
    try:
        # Decoded here, because json would let surrogates pass that are no UTF-8.
        value = json.loads(
            body.removeprefix(codecs.BOM_UTF8).decode(),
            parse_constant=_refuse_constant,
            parse_int=_short_integer,
            parse_float=_short_float,
        )
        if _SURROGATE.search(body):
            value = _mend_surrogates(value)
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply", code="invalid_json") from None
    except UnicodeDecodeError:
        raise InvalidRequest("the body is not UTF-8", code="invalid_json") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error.msg} at character {error.pos}", code="invalid_json") from None
    except _NotJsonError as error:
        raise InvalidRequest(str(error), code="invalid_json") from None
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object", code="invalid_json")
    return value


async def _refuse_too_many_values(body: bytes, most: int, effort: Effort) -> None:
    """Count what begins a value outside of strings, piece by piece, and stop at too many."""
    count = 0
    inside = False  # a string
    held = b""
    for start in range(0, len(body), _PIECE_BYTES):
        with effort.counted():
            piece = held + body[start : start + _PIECE_BYTES]
            # A backslash at the very end belongs to what follows it.
            odd = (len(piece) - len(piece.rstrip(b"\\"))) % 2
            held = piece[len(piece) - odd :]
            parts = piece[: len(piece) - odd].replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
            outside = b"".join(parts[inside::2])
            count += sum(map(outside.count, _BEGINNINGS))
            inside ^= len(parts) % 2 == 0
        if count > most:
            raise InvalidRequest(
                f"the body holds more than {most} values: send fewer documents at once, or less beside their texts",
                code="documents_too_many",
                param="documents",
            )
        await asyncio.sleep(_PAUSE_SECONDS)


class _NotJsonError(ValueError):
    pass


def _refuse_constant(name: str) -> float:
    raise _NotJsonError(f"the body holds {name}, which is not JSON")


def _short_integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise _NotJsonError("the body holds a number that is too long")
    return int(digits)


def _short_float(digits: str) -> float:
    if len(digits) > _MAX_FLOAT_DIGITS:
        raise _NotJsonError("the body holds a number that is too long")
    return float(digits)


def _mend_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value.encode()  # by far the quickest way to see that there is nothing to mend
        except UnicodeEncodeError:
            return _without_lone(value)
        return value
    if isinstance(value, list):
        return [_mend_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_mend_surrogates(key): _mend_surrogates(item) for key, item in value.items()}
    return value


def _without_lone(text: str) -> str:
    """Put U+FFFD for lone surrogates: the encoder's `?` for them is a hundred times as fast as a pattern where there are many."""
    told = text.replace("?", _NONCHARACTER).encode(errors="replace").decode()
    return told.replace("?", "\ufffd").replace(_NONCHARACTER, "?")
