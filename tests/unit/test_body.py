"""JSON that would hold up the other requests is refused before it is parsed; the rest is read as before."""

from __future__ import annotations

import json
import time

import pytest
from caller_parts import played

from bento_service import body as room
from bento_service.body import parse, parse_json
from bento_service.errors import InvalidRequest
from bento_service.turns import Effort

MEGABYTE = 1_000_000
MANY = {
    "lists": b'{"a":[' + b"[]," * MEGABYTE + b"1]}",
    "objects": b'{"a":[' + b"{}," * MEGABYTE + b"1]}",
    "numbers": b'{"a":[' + b"1," * MEGABYTE + b"1]}",
    "texts": b'{"a":[' + b'"",' * MEGABYTE + b'""]}',
    "fields": json.dumps({str(number): 1 for number in range(40_000)}).encode(),
    "nested": b"[" * 8 * MEGABYTE,
    "behind a text of quotes": json.dumps({"a": '\\"\\\\"' * 50_000, "b": [[]] * 40_000}).encode(),
}
FEW = {
    "commas in texts": json.dumps({"a": ["1,2,[3],{4:5}," * 600] * 900}).encode(),
    "quotes and backslashes": json.dumps({"a": ['\\",\\\\",[:{' * 600] * 900}).encode(),
    "one text": json.dumps({"a": ",:[{" * MEGABYTE}).encode(),
    "backslashes alone": json.dumps({"a": "\\" * MEGABYTE, "b": ",,,," * MEGABYTE}).encode(),
    "nearly too many": json.dumps({"a": [1] * 39_990}).encode(),
}


@pytest.mark.parametrize("body", MANY.values(), ids=MANY.keys())
@played
async def test_more_values_than_any_request_needs_are_refused_before_they_are_parsed(body: bytes) -> None:
    """They would take up to a third of a microsecond each, whatever the body's size."""
    with pytest.raises(InvalidRequest) as failure:
        await parse(1000, body, Effort())
    assert failure.value.code == "documents_too_many"


@pytest.mark.parametrize("body", FEW.values(), ids=FEW.keys())
@played
async def test_what_stands_in_texts_does_not_count(body: bytes) -> None:
    """Tables and code are documents, too."""
    assert await parse(1000, body, Effort()) == json.loads(body)


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 7, 64])
@played
async def test_values_are_counted_alike_wherever_pieces_are_cut(monkeypatch: pytest.MonkeyPatch, piece_bytes: int) -> None:
    """In the middle of an escape and of a text."""
    monkeypatch.setattr(room, "_PIECE_BYTES", piece_bytes)
    body = json.dumps({"a": ['\\",\\\\",[:{'] * 5, "b": {"\\": "\\\\"}}).encode()
    values = 3 + 3 + 5  # brackets, colons, commas
    await room._refuse_too_many_values(body, values, Effort())
    with pytest.raises(InvalidRequest):
        await room._refuse_too_many_values(body, values - 1, Effort())


@played
async def test_a_server_that_takes_more_documents_takes_more_values() -> None:
    """Twenty for each document, beside the least."""
    body = json.dumps({"a": [1] * 70_000}).encode()
    with pytest.raises(InvalidRequest):
        await parse(2500, body, Effort())
    assert await parse(4000, body, Effort()) == json.loads(body)


@played
async def test_a_small_body_is_parsed_at_once() -> None:
    """It cannot hold that many."""
    body = b"[" + b"1," * 39_998 + b"1]"
    assert len(body) < 80_000
    with pytest.raises(InvalidRequest, match="object"):
        await parse(1000, body, Effort())


@pytest.mark.alone
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"a":"' + b"\\ud800" * 333_333 + b'"}', id="lone surrogates"),
        pytest.param(b'{"a":"' + b"\\ud800x" * 285_000 + b'"}', id="lone surrogates between letters"),
        pytest.param(b'{"a":[' + b"9" * 400 + (b"," + b"9" * 400) * 4985 + b"]}", id="long numbers"),
        pytest.param(b'{"a":[' + b"0." + b"4" * 38 + (b",0." + b"4" * 38) * 48_000 + b"]}", id="long fractions"),
        pytest.param(b'{"a":"' + "中".encode() * 666_666 + b'"}', id="chinese"),
        pytest.param(b'{"a":"' + b"\\n" * MEGABYTE + b'"}', id="escapes"),
    ],
)
def test_two_megabytes_of_what_is_slow_to_read_hold_nobody_up(body: bytes) -> None:
    """No more than a few tens of milliseconds, with a wide margin for a busy machine."""

    def seconds() -> float:
        start = time.process_time()
        parse_json(body)
        return time.process_time() - start

    assert min(seconds() for _ in range(3)) < 0.1


@pytest.mark.parametrize("digits", [400, 401])
def test_a_number_has_at_most_four_hundred_digits(digits: int) -> None:
    """Python would take time in the square of them."""
    body = b'{"a":' + b"9" * digits + b"}"
    if digits == 400:
        assert parse_json(body) == {"a": int("9" * 400)}
        return
    with pytest.raises(InvalidRequest, match="too long"):
        parse_json(body)


@pytest.mark.parametrize("digits", [40, 41, 774])
def test_a_fraction_has_at_most_forty_digits(digits: int) -> None:
    """Rounding a longer one right takes Python as long as forty short ones."""
    body = b'{"a":0.' + b"3" * (digits - 2) + b"}"
    if digits == 40:
        assert parse_json(body) == {"a": 0.3333333333333333}
        return
    with pytest.raises(InvalidRequest, match="too long"):
        parse_json(body)


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("a?\\ud800?", "a?\ufffd?"),
        ("\\udfff", "\ufffd"),
        ("\\ud800\\ud800\\udc00x", "\ufffd\U00010000x"),
        ("?", "?"),
        ("\ufdd0", "\ufdd0"),
    ],
)
def test_lone_surrogates_become_replacement_characters(text: str, mended: str) -> None:
    """Question marks beside them stay."""
    assert parse_json(f'{{"{text}": ["{text}", "\\ud83d"]}}'.encode()) == {mended: [mended, "\ufffd"]}
