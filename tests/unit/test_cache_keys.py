"""Keys: everything that decides on a score makes another key, nothing else does, and no two pairs share one."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from cache_parts import FINGERPRINT, OTHER_FINGERPRINT, draws
from parts import make_info

from bento_service.cache.keys import DIGEST_BYTES, PairKeys, pair_keys
from bento_service.schemas import Document, RerankQuery

DECIDING: dict[str, list[Any]] = {
    "query": ["another query", "", "Query", "query ", "quéry"],
    "instruction": ["", "-", "None", "be brief"],
    "max_tokens_per_doc": [0, 1, 12, 511],
    "truncation_side": ["left"],
    "max_chunks": [1, 8],
}
INDIFFERENT: dict[str, list[Any]] = {
    "documents": [[Document("document 3", id="7", has_id=True)]],
    "model": ["", "another"],
    "top_n": [0, 1],
    "score_threshold": [0.0, 0.5],
    "raw_scores": [True],
    "truncation": [False],
    "return_documents": [True],
}
DOCUMENTS = [f"document {number}" for number in range(1000)]


def keys_of(
    texts: list[str] | None = None, /, *, fingerprint: str = FINGERPRINT, max_length: int = 512, **fields: Any
) -> PairKeys:
    """Make the keys of a query; its other fields are given by name."""
    query = RerankQuery(**{"query": "query", "documents": [], **fields})
    return pair_keys(query, ["a", "b"] if texts is None else texts, fingerprint=fingerprint, max_length=max_length)


def test_documents_beyond_the_fiftieth_have_keys_too() -> None:
    """A key is made of the whole document, wherever it stands: an earlier design looked at the first fifty alone."""
    before = keys_of(DOCUMENTS)
    assert len(set(before.pairs)) == len(DOCUMENTS)
    for place in (0, 49, 50, 51, 998, 999):
        after = keys_of([*DOCUMENTS[:place], DOCUMENTS[place] + ".", *DOCUMENTS[place + 1 :]])
        assert [number for number in range(1000) if after.pairs[number] != before.pairs[number]] == [place]
        assert after.query == before.query


@pytest.mark.parametrize("place", [0, 300, 50_000, 99_999])
def test_every_character_of_a_document_counts(place: int) -> None:
    """Also far behind the window: what is cut off is the tokenizer's to say."""
    text = "x" * 100_000
    assert keys_of([text]).pairs != keys_of([f"{text[:place]}y{text[place + 1 :]}"]).pairs


def test_a_key_does_not_depend_on_the_other_documents() -> None:
    """The same texts in another order or company have the same keys, in their order."""
    keys = dict(zip(DOCUMENTS, keys_of(DOCUMENTS).pairs, strict=True))
    shuffled = draws(1).sample(DOCUMENTS, 300)
    assert list(keys_of(shuffled).pairs) == [keys[document] for document in shuffled]
    assert keys_of(["document 3"] * 2).pairs == (keys["document 3"],) * 2
    assert keys_of([]).pairs == ()


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in DECIDING.items() for value in values])
def test_what_decides_on_the_score_makes_other_keys(name: str, value: Any) -> None:
    """Of the query and of each pair."""
    before, after = keys_of(), keys_of(**{name: value})
    assert before.query != after.query
    assert not set(before.pairs) & set(after.pairs)


@pytest.mark.parametrize("name", ["instruction", "max_tokens_per_doc"])
def test_all_values_of_a_field_are_told_apart(name: str) -> None:
    """None and an empty text are two, as are 1 and 12."""
    assert len({keys_of(**{name: value}).query for value in [None, *DECIDING[name]]}) == len(DECIDING[name]) + 1


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in INDIFFERENT.items() for value in values])
def test_what_does_not_decide_on_the_score_leaves_the_keys(name: str, value: Any) -> None:
    """What is asked of the results, or how they are called, is no reason to compute again."""
    assert keys_of(**{name: value}) == keys_of()


def test_each_field_of_a_query_is_on_one_side() -> None:
    """A new one must be thought about here."""
    assert {field.name for field in dataclasses.fields(RerankQuery)} == set(DECIDING) | set(INDIFFERENT)
    assert not set(DECIDING) & set(INDIFFERENT)


def test_a_limit_that_cuts_nothing_is_none() -> None:
    """No document has more tokens than the window."""
    assert keys_of(max_tokens_per_doc=512) == keys_of(max_tokens_per_doc=100_000) == keys_of()
    assert keys_of(max_tokens_per_doc=511) != keys_of()
    assert keys_of(max_tokens_per_doc=128, max_length=128) == keys_of(max_length=128) == keys_of()


RUNS = {"dtype": "float32", "device": "cpu", "max_length": 512, "engine": "pytorch"}


@pytest.mark.parametrize(
    ("saved", "runs"),
    [
        ({"files_sha256": {"model.safetensors": "b" * 64}}, {}),
        ({"files_sha256": {"model.safetensors": "a" * 64, "tokenizer.json": "c" * 64}}, {}),
        ({"kind": "bi-encoder"}, {}),
        ({"pooling": "cls"}, {}),
        ({"query_prompt": "query: "}, {}),
        ({"document_prompt": "query: "}, {}),
        ({}, {"dtype": "bfloat16"}),
        ({}, {"device": "cuda"}),
        ({}, {"engine": "onnx"}),
        ({}, {"max_length": 256}),
    ],
    ids=str,
)
def test_another_model_or_another_way_to_run_it_makes_other_keys(saved: dict[str, Any], runs: dict[str, Any]) -> None:
    """A revision has files of its own; the fingerprint names them all, and the keys hold the fingerprint."""
    first: dict[str, Any] = {"kind": "cross-encoder", "files_sha256": {"model.safetensors": "a" * 64}}
    fingerprints = [make_info(**info).fingerprint(**how) for info, how in ((first, RUNS), (first | saved, RUNS | runs))]
    before, after = (keys_of(fingerprint=fingerprint) for fingerprint in fingerprints)
    assert before.query != after.query
    assert not set(before.pairs) & set(after.pairs)


def test_the_last_digit_of_a_fingerprint_counts() -> None:
    """The key in Redis shows its first digits alone; the digests hold all."""
    assert not set(keys_of().pairs) & set(keys_of(fingerprint=FINGERPRINT[:-1] + "0").pairs)


def test_the_keys_for_another_fingerprint_are_those_it_would_have_given() -> None:
    """A Scorer that came back as another model answers under its own."""
    fields: dict[str, Any] = {"instruction": "i", "max_tokens_per_doc": 200, "max_length": 300}
    other = keys_of(DOCUMENTS[:70], **fields).under(OTHER_FINGERPRINT)
    assert other == keys_of(DOCUMENTS[:70], **fields, fingerprint=OTHER_FINGERPRINT)
    assert other.under(FINGERPRINT) == keys_of(DOCUMENTS[:70], **fields)


def test_fields_cannot_run_into_each_other() -> None:
    """Texts that look like the digits, colons and marks between fields, split in every way, have a key each."""
    drawn = draws(20240229)
    words = ["a", "1", "2", "12", ":", "-", "1:", "5:right", "-8:truncate", "right", "8:truncate", "é", "\0"]
    seen: dict[bytes, tuple[Any, ...]] = {}
    for _ in range(300):
        text = drawn.choices(words, k=drawn.randint(1, 6))
        for _ in range(20):
            ends = sorted(drawn.choices(range(len(text) + 1), k=3))
            pieces = ["".join(text[first:last]) for first, last in zip([0, *ends], [*ends, len(text)], strict=True)]
            fingerprint, instruction, query, document = pieces
            limit = drawn.choice([None, 1, 2, 12])
            fields = (fingerprint, instruction or drawn.choice([None, ""]), limit, query, document)
            keys = keys_of([document], fingerprint=fingerprint, instruction=fields[1], max_tokens_per_doc=limit, query=query)
            assert seen.setdefault(keys.pairs[0], fields) == fields
            assert seen.setdefault(keys.query, fields[:-1]) == fields[:-1]
    assert len(seen) > 4000


def test_texts_of_any_script_have_keys_of_one_length() -> None:
    """Forms that only look alike are different texts."""
    texts = ["", "\0", "é", "e\u0301", "日本語", "\U0001f600", "ﬁ", "fi", "\u202eabc", "abc", "ABC", "abc "]
    keys = keys_of(texts, query="Überprüfung")
    assert len(set(keys.pairs)) == len(texts)
    assert {len(digest) for digest in (*keys.pairs, keys.query)} == {DIGEST_BYTES}


def test_keys_are_the_same_in_every_process_and_release() -> None:
    """Servers share them: when one of these changes, KEY_VERSION must be raised, and both are written here anew."""
    keys = keys_of(["document"], instruction="i", max_tokens_per_doc=7)
    assert (keys.query.hex(), keys.pairs[0].hex()) == (
        "a1b429c8a1c35d987c4413dddfd616d9",
        "c65c6946d745cda7a35f324a4a4a5cf3",
    )
