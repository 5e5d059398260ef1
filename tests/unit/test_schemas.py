"""Schemas: what the object dialects accept, what they refuse, and that refusals never repeat a text."""

from __future__ import annotations

from typing import Any

import pytest

from bento_service.body import parse_json
from bento_service.dialects.dialect import Limits, to_bytes
from bento_service.dialects.objects import COHERE_V2, ObjectDialect
from bento_service.errors import InvalidRequest
from bento_service.schemas import Document, RerankQuery

PRIVATE = "xyzzy"


def _read_all(fields: dict[str, Any], documents: int, dialect: ObjectDialect = COHERE_V2) -> RerankQuery:
    """Read a request of at most so many documents."""
    [query] = dialect.read(fields, Limits(documents=documents, document_characters=10_000, chunks=8))
    return query


def _read(**fields: Any) -> RerankQuery:
    given = {"query": "q", "documents": ["a", "b"], **fields}
    return _read_all(given, 10)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b'{"query": "xyzzy"',
        b'{"query": "xyzzy",}',
        b"{'query': 'xyzzy'}",
        b'{"query": "xyzzy\n"}',
        b'{"query": "xyzzy\\q"}',
        b'{"query": "xyzzy"} xyzzy',
        b"null",
        b"[]",
        b'"xyzzy"',
        b"1",
        b'{"query": "xyzzy\xff"}',
        b"\xff\xfe\xff",
        b'{"xyzzy": NaN}',
        b'{"xyzzy": Infinity}',
        b'{"xyzzy": -Infinity}',
        pytest.param(b'{"xyzzy": ' + b"9" * 5000 + b"}", id="huge number"),
        pytest.param(b'{"xyzzy": ' + b"[" * 100_000, id="deep and cut short"),
        pytest.param(b'{"xyzzy": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", id="deep list"),
        pytest.param(b'{"a":' * 50_000, id="deep object"),
    ],
)
def test_what_is_not_a_json_object_is_refused_without_repeating_it(body: bytes) -> None:
    """Malformed, cut short, not UTF-8, not JSON, too deep, too long a number: one code, no text of the caller's."""
    with pytest.raises(InvalidRequest) as caught:
        parse_json(body)
    assert caught.value.code == "invalid_json"
    assert PRIVATE not in caught.value.message
    assert "\n" not in caught.value.message


def test_json_is_read_as_it_stands() -> None:
    """Unicode, escapes, NUL and a byte-order mark included."""
    assert parse_json('{"query": "Größe \\u4e2d\\ud83d\\ude00\\u0000"}'.encode()) == {"query": "Größe 中😀\0"}
    assert parse_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


@pytest.mark.parametrize(
    "body",
    [
        b'{"query": "a\\ud800b", "documents": ["\\uDFFF", {"text": "\\ud83d"}], "\\udc00": 1}',
        b'{"query": "a\xed\xa0\x80b"}',
        '{"query": "a\\ud800b"}'.encode("utf-16"),
        '{"query": "a\\ud800b"}'.encode("utf-32"),
    ],
    ids=["escaped", "raw", "utf-16", "utf-32"],
)
def test_no_lone_surrogate_gets_past_the_parser(body: bytes) -> None:
    """Neither the tokenizer nor the answer could encode one: it becomes U+FFFD, or the body is refused."""
    try:
        fields = parse_json(body)
    except InvalidRequest:
        return
    assert "\ufffd" in fields["query"]
    str(fields).encode()


def test_mending_surrogates_spares_the_pairs() -> None:
    """Only the lone one is replaced."""
    assert parse_json(b'{"a": ["\\ud83d\\ude00\\ud800", 1, null]}') == {"a": ["😀\ufffd", 1, None]}


@pytest.mark.parametrize("depth", [100, 450, 700, 900])
def test_deep_nesting_beside_a_lone_surrogate_is_read_or_refused(depth: int) -> None:
    """Whatever the JSON parser reads, the mending must not stumble over."""
    body = b'{"query": "\\ud800", "x": ' + b"[" * depth + b"]" * depth + b"}"
    try:
        fields = parse_json(body)
    except InvalidRequest:
        return
    assert fields["query"] == "\ufffd"


@pytest.mark.parametrize(
    "value",
    [
        "1e999",
        "[-1e999]",
        '{"a": null}',
        "1.5",
        "null",
        "true",
        pytest.param("1" * 4000, id="huge"),
        pytest.param("[" * 300 + "]" * 300, id="deep"),
    ],
)
def test_whatever_id_is_accepted_can_be_echoed(value: str) -> None:
    """What the answer cannot hold must be refused on the way in."""
    body = f'{{"query": "q", "documents": [{{"text": "a", "id": {value}}}]}}'.encode()
    try:
        [document] = _read_all(parse_json(body), 1).documents
    except InvalidRequest:
        return
    assert document.has_id
    assert to_bytes(document.id)


@pytest.mark.parametrize("field", ["score_threshold", "top_n", "max_tokens_per_doc"])
def test_a_number_beyond_floats_is_refused(field: str) -> None:
    """1e999 parses as infinity."""
    with pytest.raises(InvalidRequest):
        _read(**parse_json(f'{{"{field}": 1e999}}'.encode()))


@pytest.mark.parametrize(
    ("item", "text"),
    [
        *[(text, text) for text in ("plain", "", "a\0b")],
        *[({key: "inside"}, "inside") for key in ("text", "content", "document", "body", "value", "snippet")],
        ({"content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}, "one\ntwo"),
        ({"content": "second", "text": "first"}, "first"),
        ({"text": None, "content": "second"}, "second"),
        ({"text": "", "content": "second"}, ""),
    ],
)
def test_a_document_s_text_is_found_where_clients_put_it(item: Any, text: str) -> None:
    """Strings, objects under any of the known names, and vLLM's content parts."""
    assert _read(documents=[item]).documents == [Document(text)]


@pytest.mark.parametrize(
    "item",
    [
        None,
        3,
        1.5,
        True,
        [],
        ["xyzzy"],
        {},
        {"id": 1},
        {"text": 3},
        {"text": None},
        {"title": "xyzzy"},
        {"content": []},
        {"content": [{"type": "image_url", "image_url": "xyzzy"}]},
        {"content": [{"type": "text", "text": "xyzzy"}, "xyzzy"]},
    ],
)
def test_a_document_without_text_is_refused_by_its_index(item: Any) -> None:
    """The message names the index, never the text."""
    with pytest.raises(InvalidRequest, match="document 1 ") as caught:
        _read(documents=["xyzzy", item])
    assert caught.value.param == "documents"
    assert PRIVATE not in caught.value.message


@pytest.mark.parametrize("given", [7, "id", None, 0, "", 1.5, -0.0, 10**30, True, False])
def test_an_id_is_kept_as_it_came(given: Any) -> None:
    """Null is an id too; only an absent one is none."""
    assert _read(documents=[{"text": "a", "id": given}]).documents == [Document("a", given, has_id=True)]


@pytest.mark.parametrize("value", ["1e999", "-1e999", "[]", '["xyzzy"]', "{}", '{"xyzzy": 1}', "[" * 300 + "]" * 300])
def test_an_id_that_is_no_plain_value_is_refused_by_its_document(value: str) -> None:
    """Lists, objects and infinity; the message names the index, never the id."""
    body = f'{{"query": "q", "documents": ["a", {{"text": "b", "id": {value}}}]}}'.encode()
    with pytest.raises(InvalidRequest, match="document 1 has an id") as caught:
        _read_all(parse_json(body), 2)
    assert (caught.value.status, caught.value.param) == (400, "documents")
    assert PRIVATE not in caught.value.message
