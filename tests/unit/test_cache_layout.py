"""What lies in Redis: values come back bit for bit or not at all, and a query's keys lie in one slot."""

from __future__ import annotations

import base64
import math
import struct
import zlib

import numpy as np
import pytest
from cache_parts import FINGERPRINT, OTHER_FINGERPRINT, draws, make_keys, score_of
from redis.crc import key_slot

from bento_service.cache import layout
from bento_service.cache.keys import DIGEST_BYTES, KEY_VERSION
from bento_service.pairs import KnownScore

PAIR, OTHER_PAIR = make_keys(2).pairs
FLOAT32_BYTES = 4


def test_values_come_back_bit_for_bit() -> None:
    """Any finite float32, any count of tokens, cut or not, of a window or not."""
    drawn = draws(3)
    extremes = [0.0, -0.0, 1.0, -1.0, float(np.finfo(np.float32).max), float(np.finfo(np.float32).smallest_subnormal)]
    bits = [drawn.randbytes(FLOAT32_BYTES) for _ in range(2000)]
    raws = [*extremes, *(struct.unpack("<f", four)[0] for four in bits)]
    finite = [raw for raw in raws if math.isfinite(raw)]
    assert len(finite) > 1900
    for raw in finite:
        pair = drawn.randbytes(DIGEST_BYTES)
        span = drawn.choice([None, (0, 0), (7, 2**32 - 1)])
        known = KnownScore(raw, drawn.choice([0, 1, 512, 2**32 - 1]), drawn.random() < 0.5, span)
        blob = layout.pack_value(pair, known)
        found = layout.unpack_value(pair, blob)
        assert len(blob) == (layout.SPAN_VALUE_BYTES if span else layout.VALUE_BYTES)
        assert found == known
        assert struct.pack("<f", found.raw) == struct.pack("<f", raw)
        assert isinstance(found.truncated, bool)


@pytest.mark.parametrize("known", [score_of(0), score_of(1), KnownScore(-7.5, 2**32 - 1, truncated=True, span=(1, 9))])
def test_a_single_flipped_bit_is_noticed(known: KnownScore) -> None:
    """Wherever it is, in the value or in the checksum."""
    blob = layout.pack_value(PAIR, known)
    for bit in range(8 * len(blob)):
        damaged = bytearray(blob)
        damaged[bit // 8] ^= 1 << bit % 8
        assert layout.unpack_value(PAIR, bytes(damaged)) is None


def test_a_value_of_another_length_is_none() -> None:
    """Shorter, longer or empty."""
    blob = layout.pack_value(PAIR, score_of(1))
    for length in range(layout.VALUE_BYTES):
        assert layout.unpack_value(PAIR, blob[:length]) is None
        assert layout.unpack_value(PAIR, blob[-length:] if length else b"") is None
    assert layout.unpack_value(PAIR, blob + b"\0") is None
    assert layout.unpack_value(PAIR, blob * 2) is None


def test_another_pair_s_value_is_none() -> None:
    """A score must not slip to another document."""
    assert layout.unpack_value(OTHER_PAIR, layout.pack_value(PAIR, score_of(1))) is None


@pytest.mark.parametrize("raw", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_none(raw: float) -> None:
    """Even with a checksum that is right."""
    assert layout.unpack_value(PAIR, layout.pack_value(PAIR, KnownScore(raw, 1, truncated=False))) is None


def test_garbage_of_the_right_length_is_none() -> None:
    """Random bytes, and bytes that all are one."""
    drawn = draws(5)
    garbage = [drawn.randbytes(layout.VALUE_BYTES) for _ in range(20_000)] + [
        bytes([byte]) * layout.VALUE_BYTES for byte in range(256)
    ]
    assert not any(layout.unpack_value(PAIR, blob) for blob in garbage)


def test_several_values_are_read_in_order_and_one_by_one() -> None:
    """One that is damaged spoils no other; where one is missing, nobody can tell which, and none is taken."""
    pairs = make_keys(5).pairs
    for span in (None, (3, 500)):
        scores = [score_of(number)._replace(span=span) for number in range(5)]
        blobs = [layout.pack_value(pair, known) for pair, known in zip(pairs, scores, strict=True)]
        blobs[2] = bytes(len(blobs[2]))
        assert layout.unpack_values(pairs, b"".join(blobs)) == [*scores[:2], None, *scores[3:]]
        assert layout.unpack_values(pairs, b"".join(blobs[:4])) == [None] * 5
    assert layout.unpack_values([], b"") == []


def test_values_are_read_by_every_release_of_this_key_version() -> None:
    """Servers share them: when this changes, KEY_VERSION must be raised, and both are written here anew."""
    for span, value in ((None, struct.pack("<fIB", 0.5, 7, 1)), ((3, 500), struct.pack("<fIBII", 0.5, 7, 1, 3, 500))):
        blob = layout.pack_value(PAIR, KnownScore(0.5, 7, truncated=True, span=span))
        assert blob == value + struct.pack("<I", zlib.crc32(PAIR + value))
    assert (KEY_VERSION, layout.PREFIX, layout.PAGES, layout.PAGE_PAIRS) == (2, "reranker:2:", 8, 512)


def test_the_keys_of_a_query_lie_in_one_slot_and_are_its_own() -> None:
    """So one call reaches them all in a cluster, and queries spread over its servers."""
    slots, seen = set(), set()
    for number in range(200):
        for fingerprint in (FINGERPRINT, OTHER_FINGERPRINT):
            keys = layout.query_keys(fingerprint, make_keys(0, f"query {number}", fingerprint).query)
            assert len({key_slot(key.encode()) for key in keys}) == 1
            slots.add(key_slot(keys[0].encode()))
            seen.update(keys)
    assert len(seen) == 400 * (1 + layout.PAGES)
    assert len(slots) > 380


def test_every_key_begins_with_the_prefix_and_shows_its_model() -> None:
    """That is how `make cache-clear` finds them; no text of a request is in them."""
    query = make_keys(0).query
    keys = layout.query_keys(FINGERPRINT, query)
    assert keys[0].endswith("}:claims")
    assert [key.rpartition(":")[2] for key in keys[1:]] == [str(page) for page in range(layout.PAGES)]
    assert all(key.startswith(f"{layout.PREFIX}{FINGERPRINT[:16]}:{{") and key.isascii() for key in keys)
    assert layout.cleared_key(FINGERPRINT) == f"{layout.PREFIX}cleared:{FINGERPRINT[:16]}"
    assert not layout.cleared_key(FINGERPRINT).startswith(f"{layout.PREFIX}{FINGERPRINT[:16]}:")


@pytest.mark.parametrize("query", [bytes(DIGEST_BYTES), b"\xff" * DIGEST_BYTES, b"\xfb\xef}{" * 4], ids=bytes.hex)
def test_any_digest_makes_a_key_with_one_pair_of_braces(query: bytes) -> None:
    """A brace or a wildcard in it would change the slot, or what `make cache-clear` finds."""
    tag = base64.urlsafe_b64encode(query).decode().rstrip("=")
    ends = ["claims", *map(str, range(layout.PAGES))]
    assert layout.query_keys(FINGERPRINT, query) == [f"reranker:2:0123456789abcdef:{{{tag}}}:{end}" for end in ends]
    assert not set(tag) & set("{}*?[]\\ ")


def test_what_is_asked_at_once_fits_a_call_and_the_pages() -> None:
    """Lua unpacks no more than 8000 values."""
    assert layout.MOST_PAIRS == layout.PAGE_PAIRS * layout.PAGES < 8000
