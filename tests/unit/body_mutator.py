"""Bodies that no client would send: valid ones of every dialect, mutated. The same seed and number give the same body."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable
from typing import Any

MARKER = "qZ9xVj4wKp"  # stands in every text and in every name that the service does not know
_LONG = f"{MARKER} " * 40
BODIES: list[dict[str, Any]] = [
    {"query": MARKER, "documents": [MARKER, f"b {MARKER}"]},
    {
        "query": f"q {MARKER}",
        "documents": [{"text": MARKER, "id": 7}, {"content": [{"type": "text", "text": MARKER}], "id": MARKER}, MARKER],
        "top_n": 2,
        "return_documents": "true",
        "model": MARKER,
        "max_tokens_per_doc": 512,
        "raw_scores": True,
        "truncation": False,
        "long_documents": "chunk",
        "max_chunks_per_doc": 9,
        "score_threshold": 0.25,
        "instruction": MARKER,
        MARKER: {MARKER: [1, None, MARKER]},
    },
    {"query": MARKER, "documents": [{MARKER: MARKER, "title": MARKER}] * 3, "rank_fields": ["title", MARKER], "rank_count": 1},
    {"query": MARKER, "documents": [{key: MARKER} for key in ("document", "body", "value", "snippet")], "top_k": 4},
    {"model": MARKER, "query": MARKER, "documents": [_LONG], "top_k": None, "truncate": True, "user": MARKER},
    {"query": MARKER, "texts": [MARKER, _LONG], "raw_scores": False, "return_text": True, "truncation_direction": "Left"},
    {"query": MARKER, "texts": [MARKER] * 8, "truncate": None, "top_n": 3, "model": MARKER, "return_text": "False"},
    {"queries": MARKER, "documents": [MARKER, {"text": MARKER}], "model": MARKER, "use_activation": False},
    {"queries": [MARKER, f"{MARKER} 2"], "documents": [MARKER, f"{MARKER} 3"], "instruction": MARKER},
    {"text_1": [MARKER], "text_2": MARKER},
    {"query": MARKER, "documents": [MARKER] * 3, "score_threshold": -0.5, "max_tokens_per_doc": 3, "max_chunks_per_doc": 3},
]
_NAMES = sorted({name for body in BODIES for name in body} | {"text", "id", "content"})
_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 1.0, 2.5, -0.0, 1e308, 5e-324, 10**30, -(10**30)),
    *("", " ", "\u3000", "true", "FALSE", "chunk", "left", "\0", "\ud800", "\udfff x", "😀", MARKER, MARKER * 60, "123"),
    *([], {}, [[]], [None], [MARKER], [{}], {"text": None}, {"text": MARKER}, [{"text": MARKER}], [MARKER] * 40),
]
# What json.dumps cannot write: put there afterwards, where the string stands.
_WRITTEN = {'"@inf"': "1e999", '"@-inf"': "-1e999", '"@long"': "9" * 400, '"@longer"': "9" * 5000, '"@exp"': "-1E+400"}
_VALUES += [json.loads(name) for name in _WRITTEN]
_TOKENS = [
    *(b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"1e-999", b"null", b"-", b"0x10", b"01", b"1.", b".5"),
    *(b"9" * 400, b"9" * 5000, b"[" * 20_000, b'{"a":' * 3000, b"[" * 900 + b"]" * 900, b'"', b"\\", b"\\u", b"//", b"/**/"),
    *(b"\\ud800", b"\\udc00", b"\\ud83d\\ude00", b"\\u0000", b"\xff", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\x00"),
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\r\n", b"\xe2\x80\xa8", MARKER.encode()),
    *(b'"query":5,', b'"documents":[],', b'"documents":null,', b'"texts":{},', b'"top_n":-1,', b'"query":"","query":"x",'),
]
_NUMBER = re.compile(rb"-?\d+(\.\d+)?")


def _place(body: bytes, draw: random.Random) -> tuple[int, int]:
    start = draw.randint(0, len(body))
    return start, min(len(body), start + draw.choice((1, 2, 5, 20, 200)))


def _flip(body: bytes, draw: random.Random) -> bytes:
    if not body:
        return b"\x01"
    at = draw.randrange(len(body))
    return body[:at] + bytes([body[at] ^ (1 << draw.randrange(8))]) + body[at + 1 :]


def _insert(body: bytes, draw: random.Random) -> bytes:
    at, _ = _place(body, draw)
    return body[:at] + draw.choice(_TOKENS) + body[at:]


def _after_a_sign(body: bytes, draw: random.Random) -> bytes:
    """Insert where a value, a name or an element may stand."""
    signs = [index + 1 for index, byte in enumerate(body[:4000]) if byte in b'{[,:"']
    at = draw.choice(signs) if signs else 0
    return body[:at] + draw.choice(_TOKENS) + body[at:]


def _delete(body: bytes, draw: random.Random) -> bytes:
    start, end = _place(body, draw)
    return body[:start] + body[end:]


def _repeat(body: bytes, draw: random.Random) -> bytes:
    start, end = _place(body, draw)
    return body[:end] + body[start:end] * draw.choice((1, 3, 50)) + body[end:]


def _splice(body: bytes, draw: random.Random) -> bytes:
    other = json.dumps(draw.choice(BODIES)).encode()
    return body[: _place(body, draw)[0]] + other[_place(other, draw)[0] :]


def _truncate(body: bytes, draw: random.Random) -> bytes:
    return body[: _place(body, draw)[0]]


def _renumber(body: bytes, draw: random.Random) -> bytes:
    numbers = list(_NUMBER.finditer(body))
    if not numbers:
        return body
    start, end = draw.choice(numbers).span()
    return body[:start] + draw.choice((b"1e999", b"-1", b"0.5", b"9" * 5000, b"9" * 400, b"1E400", b"-0", b"1e5")) + body[end:]


def _recode(body: bytes, draw: random.Random) -> bytes:
    return body.decode("utf-8", "replace").encode(draw.choice(("utf-8-sig", "utf-16", "utf-32", "utf-16-be", "utf-7")))


_BYTES: list[Callable[[bytes, random.Random], bytes]] = [
    *(_flip, _insert, _after_a_sign, _delete, _repeat, _splice, _truncate, _renumber, _recode)
]


def _spots(value: Any) -> Iterable[tuple[Any, Any]]:
    """Every container in a value, with each of its keys or indexes."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _spots(value[key])


def _reshape(fields: dict[str, Any], draw: random.Random) -> None:
    """Change one value, name or place, so that the JSON stays whole."""
    if not fields:
        return
    holder, key = draw.choice(list(_spots(fields)))
    change = draw.randrange(5)
    if change == 0 and isinstance(holder, dict) and key in holder:
        holder[draw.choice(_NAMES)] = holder.pop(key)
    elif change == 1:
        fields[draw.choice(_NAMES)] = json.loads(json.dumps(draw.choice(_VALUES)))
    elif change == 2:
        holder.pop(key)
    elif change == 3 and isinstance(holder, list):
        holder.insert(0, holder[key])
    else:
        holder[key] = json.loads(json.dumps(draw.choice(_VALUES)))


def mutated(seed: int, number: int) -> bytes:
    """Make a body: fields changed, bytes changed, or both."""
    draw = random.Random(f"{seed}/{number}")  # noqa: S311  to repeat a case is the point
    fields = json.loads(json.dumps(draw.choice(BODIES)))
    way = draw.randrange(3)
    for _ in range(draw.randint(1, 2) if way else 0):
        _reshape(fields, draw)
    text = json.dumps(fields, ensure_ascii=draw.random() < 0.5)
    for name, written in _WRITTEN.items():
        text = text.replace(name, written)
    body = text.encode("utf-8", "surrogatepass")
    for _ in range(draw.randint(1, 2) if way != 1 else 0):
        body = draw.choice(_BYTES)(body, draw)
    return body
