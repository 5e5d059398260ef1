"""Schemas: each field of an object-dialect request, what it takes and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from bento_service.dialects.dialect import Limits
from bento_service.dialects.objects import COHERE_V2, NATIVE, V1, ObjectDialect
from bento_service.errors import InvalidRequest
from bento_service.schemas import RerankQuery

PRIVATE = "xyzzy"


def _read_all(fields: dict[str, Any], documents: int, dialect: ObjectDialect = COHERE_V2) -> RerankQuery:
    """Read a request of at most so many documents."""
    [query] = dialect.read(fields, Limits(documents=documents, document_characters=10_000, chunks=8))
    return query


def _read(**fields: Any) -> RerankQuery:
    given = {"query": "q", "documents": ["a", "b"], **fields}
    return _read_all(given, 10)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ([], "documents_empty"),
        (["a"] * 11, "documents_too_many"),
        (None, "invalid_request"),
        ("xyzzy", "invalid_request"),
        ({"a": "xyzzy"}, "invalid_request"),
        (3, "invalid_request"),
    ],
)
def test_documents_must_be_a_list_of_one_to_the_limit(value: Any, code: str) -> None:
    """Empty and too many have codes of their own."""
    with pytest.raises(InvalidRequest) as caught:
        _read(documents=value)
    assert (caught.value.code, caught.value.param) == (code, "documents")
    assert PRIVATE not in caught.value.message


def test_as_many_documents_as_the_limit_are_taken() -> None:
    """The limit itself is allowed."""
    assert len(_read(documents=["a"] * 10).documents) == 10


@pytest.mark.parametrize("missing", ["query", "documents"])
def test_a_missing_field_is_named(missing: str) -> None:
    """Both fields are required."""
    fields = {name: value for name, value in {"query": "q", "documents": ["a"]}.items() if name != missing}
    with pytest.raises(InvalidRequest, match=missing) as caught:
        _read_all(fields, 1)
    assert caught.value.param == missing


def test_a_bare_request_takes_the_defaults() -> None:
    """Nothing is cut, dropped or returned unless asked."""
    query = _read()
    assert (query.top_n, query.score_threshold, query.max_tokens_per_doc, query.model, query.instruction) == (None,) * 5
    assert (query.raw_scores, query.truncation, query.return_documents) == (False, True, False)


@pytest.mark.parametrize("query", ["", " ", "\n\t", "\u00a0\u3000", None, 3, ["xyzzy"], {"text": "xyzzy"}, True])
def test_a_query_is_a_string_that_is_not_blank(query: Any) -> None:
    """Whatever Unicode calls white space is blank."""
    with pytest.raises(InvalidRequest, match="query") as caught:
        _read(query=query)
    assert caught.value.param == "query"
    assert PRIVATE not in caught.value.message


@pytest.mark.parametrize("query", [" padded ", "\0", "q" * 10_000], ids=["padded", "nul", "long"])
def test_a_query_is_taken_as_it_stands(query: str) -> None:
    """Nothing is stripped: the tokenizer decides."""
    assert _read(query=query).query == query


@pytest.mark.parametrize("name", ["top_n", "top_k", "rank_count"])
@pytest.mark.parametrize("value", [-1, 1.5, 1.0, True, False, "3", "xyzzy", [1], {}, -(10**30)])
def test_top_n_must_be_a_whole_number_of_at_least_zero(name: str, value: Any) -> None:
    """Under each of its names, and the name that was sent is in the answer."""
    with pytest.raises(InvalidRequest, match=name) as caught:
        _read(**{name: value})
    assert caught.value.param == name
    assert PRIVATE not in caught.value.message


@pytest.mark.parametrize("name", ["top_n", "top_k", "rank_count"])
@pytest.mark.parametrize("value", [0, 1, 2, 10**9, 10**30, None])
def test_top_n_takes_any_size(name: str, value: int | None) -> None:
    """What 0 and more than there are mean is ranking's business."""
    assert _read(**{name: value}).top_n == value


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "512", [1]])
def test_max_tokens_per_doc_must_be_at_least_one(value: Any) -> None:
    """A document without tokens is no document."""
    with pytest.raises(InvalidRequest) as caught:
        _read(max_tokens_per_doc=value)
    assert caught.value.param == "max_tokens_per_doc"


@pytest.mark.parametrize("value", [1, 512, 10**30])
def test_max_tokens_per_doc_is_handed_on(value: int) -> None:
    """The tokenizer clamps it to the window."""
    assert _read(max_tokens_per_doc=value).max_tokens_per_doc == value


@pytest.mark.parametrize("field", ["return_documents", "raw_scores", "truncation"])
@pytest.mark.parametrize(("value", "read"), [(True, True), (False, False), ("true", True), ("false", False), ("False", False)])
def test_flags_are_read_from_booleans_and_their_names(field: str, value: Any, read: bool) -> None:
    """RAGFlow and Xinference send strings."""
    assert getattr(_read(**{field: value}), field) is read


@pytest.mark.parametrize("field", ["return_documents", "raw_scores", "truncation", "truncate"])
@pytest.mark.parametrize("value", [0, 1, "yes", "1", "", "xyzzy", [True], {}])
def test_anything_else_is_no_flag(field: str, value: Any) -> None:
    """A guess would be worse than an error."""
    with pytest.raises(InvalidRequest) as caught:
        _read(**{field: value})
    assert caught.value.param == field
    assert PRIVATE not in caught.value.message


@pytest.mark.parametrize("field", ["return_documents", "raw_scores", "truncation", "truncate", "top_n", "model", "instruction"])
def test_null_means_the_default(field: str) -> None:
    """Clients send null for what their caller left out."""
    assert _read(**{field: None}) == _read()


def test_truncate_is_another_name_of_truncation() -> None:
    """As TEI's clients spell it."""
    assert _read(truncate=False).truncation is False
    assert _read(truncate=True).truncation is True


def test_the_dialect_s_default_of_return_documents_yields_to_the_caller() -> None:
    """True on /rerank, false on /v2/rerank, and the field wins over both."""
    fields: dict[str, Any] = {"query": "q", "documents": ["a"]}
    assert _read_all(fields, 1, NATIVE).return_documents is True
    asked = {**fields, "return_documents": False}
    assert _read_all(asked, 1, NATIVE).return_documents is False


@pytest.mark.parametrize("value", [0, -3, 0.5, 1e300])
def test_a_threshold_is_any_finite_number(value: float) -> None:
    """Raw scores may be negative or large."""
    assert _read(score_threshold=value).score_threshold == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), "0.5", True, [0.5], 10**400])
def test_a_threshold_that_is_no_finite_number_is_refused(value: Any) -> None:
    """NaN would drop everything in silence."""
    with pytest.raises(InvalidRequest) as caught:
        _read(score_threshold=value)
    assert caught.value.param == "score_threshold"


@pytest.mark.parametrize("field", ["model", "instruction"])
@pytest.mark.parametrize("value", [3, True, ["xyzzy"], {"xyzzy": 1}])
def test_names_must_be_strings(field: str, value: Any) -> None:
    """And the refusal does not repeat them."""
    with pytest.raises(InvalidRequest, match=field) as caught:
        _read(**{field: value})
    assert PRIVATE not in caught.value.message


@pytest.mark.parametrize("value", ["xyzzy", 1])
def test_a_way_with_long_documents_that_is_not_offered_is_refused(value: Any) -> None:
    """Rather than truncating what the caller wanted chunked."""
    with pytest.raises(InvalidRequest, match="truncate") as caught:
        _read(long_documents=value)
    assert caught.value.param == "long_documents"
    assert PRIVATE not in caught.value.message


def test_other_fields_are_ignored() -> None:
    """Clients send more than anyone documents."""
    assert _read(user="u", priority=3, max_chunks_per_doc=9, encoding_format="float", rank=None) == _read()


ARTICLE = {
    "title": "T",
    "text": "body",
    "tags": ["t"],
    "content": [{"type": "text", "text": "c1"}, {"type": "text", "text": "c2"}],
}


@pytest.mark.parametrize(
    ("rank_fields", "text"),
    [
        (None, "body"),
        ([], "body"),
        (["title"], "T"),
        (["title", "text"], "T\nbody"),
        (["text", "title"], "body\nT"),
        (["content", "title"], "c1\nc2\nT"),
        (["missing", "title"], "T"),
        (["tags", "title"], "T"),
        (["missing"], "body"),
        (["title", "title"], "T"),
    ],
)
def test_rank_fields_say_what_of_an_object_is_ranked(rank_fields: Any, text: str) -> None:
    """Joined by newlines in the order asked for; where an object has none of them, its text is found as ever."""
    query = _read(documents=[ARTICLE, "plain"], rank_fields=rank_fields)
    assert [document.text for document in query.documents] == [text, "plain"]


def test_rank_fields_find_texts_that_have_no_known_name() -> None:
    """Which without them is an error, as it is where none of them holds a text."""
    assert _read(documents=[{"title": "T"}], rank_fields=["title"]).documents[0].text == "T"
    for rank_fields in (None, ["tags"]):
        with pytest.raises(InvalidRequest, match="document 0 has no text"):
            _read(documents=[{"title": PRIVATE}], rank_fields=rank_fields)


@pytest.mark.parametrize("value", ["title", [1], {"title": 1}, [None]])
def test_rank_fields_must_be_names(value: Any) -> None:
    """A list of strings; the refusal names the field that is wrong."""
    with pytest.raises(InvalidRequest) as caught:
        _read(rank_fields=value)
    assert caught.value.param == "rank_fields"


@pytest.mark.parametrize(
    ("fields", "chunks"),
    [
        ({}, None),
        ({"long_documents": None}, None),
        ({"long_documents": "truncate"}, None),
        ({"long_documents": "truncate", "max_chunks_per_doc": 3}, None),
        ({"max_chunks_per_doc": 3}, None),
        ({"long_documents": "chunk"}, 8),
        ({"long_documents": "chunk", "max_chunks_per_doc": None}, 8),
        ({"long_documents": "chunk", "max_chunks_per_doc": 3}, 3),
        ({"long_documents": "chunk", "max_chunks_per_doc": 9}, 8),
        ({"long_documents": "chunk", "max_chunks_per_doc": 10**30}, 8),
    ],
)
def test_long_documents_are_cut_into_windows_only_when_asked(fields: dict[str, Any], chunks: int | None) -> None:
    """As many as the caller says, and never more than the server's limit, which is 8 here."""
    assert _read(**fields).max_chunks == chunks


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3"])
def test_max_chunks_per_doc_must_be_at_least_one(value: Any) -> None:
    """A document without windows is none; where no windows are asked for, what clients send is ignored."""
    with pytest.raises(InvalidRequest) as caught:
        _read(max_chunks_per_doc=value, long_documents="chunk")
    assert caught.value.param == "max_chunks_per_doc"
    for way in ({}, {"long_documents": "truncate"}, {"long_documents": None}):
        assert _read(max_chunks_per_doc=value, **way).max_chunks is None


def test_a_null_does_not_hide_another_name() -> None:
    """Typed clients send null for what they leave out."""
    assert _read(top_n=None, top_k=3).top_n == 3
    assert _read(top_n=None, top_k=None, rank_count=2).top_n == 2
    assert _read(truncation=None, truncate=False).truncation is False


def test_the_first_of_several_names_counts() -> None:
    """In the order in which they are documented, whatever the others hold."""
    assert _read(rank_count=3, top_k=2, top_n=1).top_n == 1
    assert _read(rank_count=3, top_k=2).top_n == 2
    assert _read(truncate=True, truncation=False).truncation is False


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"query": "q" * 10_001}, "query_too_long", "query"),
        ({"documents": ["a", "b" * 10_001]}, "document_too_large", "documents"),
        ({"documents": ["a", {"text": "b" * 10_001}]}, "document_too_large", "documents"),
        ({"documents": ["a", {"a": "b" * 5000, "b": "b" * 5000}], "rank_fields": ["a", "b"]}, "document_too_large", "documents"),
    ],
)
def test_texts_beyond_the_server_s_limit_are_refused(fields: dict[str, Any], code: str, param: str) -> None:
    """By index, before anything is tokenised; joined ones as a whole."""
    with pytest.raises(InvalidRequest, match=r"1000[01] characters") as caught:
        _read(**fields)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert param == "query" or "document 1 " in caught.value.message


def test_v1_returns_no_documents_unless_asked() -> None:
    """As Cohere v1 and Jina."""
    fields: dict[str, Any] = {"query": "q", "documents": ["a"]}
    assert _read_all(fields, 1, V1).return_documents is False
    assert _read_all({**fields, "return_documents": "true"}, 1, V1).return_documents is True
