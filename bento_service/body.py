"""A request's body: read within its limits, and parsed as JSON and nothing else."""

from __future__ import annotations

import json
import re
from typing import Any

from starlette.requests import ClientDisconnect, Request

from bento_service.errors import BodyTooLarge, InvalidRequest

# Any escaped surrogate: only such a body can hold a lone one, so only such a body is searched.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class ClientGone(Exception):
    """The caller closed the connection before its answer."""


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Read the body, no further than the limit; raises BodyTooLarge or ClientGone."""
    declared = request.headers.get("content-length", "")
    chunks: list[bytes] = []
    size = int(declared) if declared.isdecimal() else 0
    if size <= max_bytes:
        size = 0
        try:
            async for chunk in request.stream():
                size += len(chunk)
                if size > max_bytes:
                    break
                chunks.append(chunk)
        except ClientDisconnect:
            raise ClientGone from None
    if size > max_bytes:
        raise BodyTooLarge(f"the body is over the limit of {max_bytes} bytes: send fewer or shorter documents")
    return b"".join(chunks)


def parse_json(body: bytes) -> dict[str, Any]:
    """Read a JSON object; lone surrogates become U+FFFD, NaN and Infinity are refused.

    Raises InvalidRequest, whose message never repeats the body.
    """
    try:
        # Decoded here, because json would let surrogates pass that are no UTF-8.
        value = json.loads(body.decode("utf-8-sig"), parse_constant=_refuse_constant)
        if _SURROGATE.search(body):
            value = _mend_surrogates(value)
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply", code="invalid_json") from None
    except UnicodeDecodeError:
        raise InvalidRequest("the body is not UTF-8", code="invalid_json") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error.msg} at character {error.pos}", code="invalid_json") from None
    except ValueError as error:
        # Besides our own refusal, Python refuses to convert integers of more than 4300 digits.
        message = str(error) if isinstance(error, _NotJsonError) else "the body holds a number that is too long"
        raise InvalidRequest(message, code="invalid_json") from None
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object", code="invalid_json")
    return value


class _NotJsonError(ValueError):
    pass


def _refuse_constant(name: str) -> float:
    raise _NotJsonError(f"the body holds {name}, which is not JSON")


def _mend_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_mend_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_mend_surrogates(key): _mend_surrogates(item) for key, item in value.items()}
    return value
