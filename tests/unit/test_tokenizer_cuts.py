"""The tokenizer and long documents: cut on the left, or into overlapping windows that lose nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from tokenizers import Tokenizer

from bento_service.tokenizer import Cut, PairTokenizer, TokenizedPair

Make = Callable[..., PairTokenizer]
CLS, SEP = 101, 102
WINDOW = 64
WORDS = [
    "the",
    "river",
    "rises,",
    "crosses",
    "3",
    "plains;",
    "Größe",
    "中文",
    "naïve",
    "café",
    "unbelievably",
    "x-ray",
    "\U0001f600",
]
QUERY = "which river?"
KINDS = ["cross-encoder", "bi-encoder"]


def _text(seed: int, words: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, size=words))


def _encode(tokenizer: PairTokenizer, text: str, cut: Cut) -> TokenizedPair:
    [pair] = tokenizer.encode_now(QUERY, [text], cut, 12.5, 7)
    return pair


def _bodies(pair: TokenizedPair, reference: Tokenizer, kind: str) -> list[list[int]]:
    """The documents' own tokens, window by window; the query must be whole in each."""
    query = reference.encode(QUERY).ids
    bodies = []
    for window in pair.windows:
        ids = window.ids.tolist()
        assert ids[: len(query)] == query
        assert ids[-1] == SEP
        assert kind == "cross-encoder" or ids[len(query)] == CLS
        bodies.append(ids[len(query) + (kind == "bi-encoder") : -1])
    return bodies


def _room(reference: Tokenizer, kind: str) -> int:
    return WINDOW - len(reference.encode(QUERY).ids) - 1 if kind == "cross-encoder" else WINDOW - 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("words", [30, 100, 300, 5000])
def test_windows_overlap_and_lose_nothing(make_tokenizer: Make, reference: Tokenizer, kind: str, words: int) -> None:
    """Each is full but the last, and repeats an eighth of the one before; together they are the document's tokens."""
    text = _text(words, words)
    pair = _encode(make_tokenizer(kind, max_length=WINDOW), text, Cut(max_chunks=1000))
    room = _room(reference, kind)
    overlap = room // 8
    bodies = _bodies(pair, reference, kind)
    assert [len(body) for body in bodies[:-1]] == [room] * (len(bodies) - 1)
    assert len(bodies[-1]) <= room
    for before, after in itertools.pairwise(bodies):
        assert before[-overlap:] == after[:overlap]
    joined = bodies[0] + [token for body in bodies[1:] for token in body[overlap:]]
    assert joined == reference.encode(text, add_special_tokens=False).ids
    assert not pair.truncated
    assert pair.token_count == sum(len(window.ids) for window in pair.windows)


@pytest.mark.parametrize("kind", KINDS)
def test_a_span_is_where_its_window_stands_in_the_document(make_tokenizer: Make, reference: Tokenizer, kind: str) -> None:
    """In characters, whatever bytes they take: encoding just that text gives the window's tokens again."""
    text = _text(7, 400)
    pair = _encode(make_tokenizer(kind, max_length=WINDOW), text, Cut(max_chunks=1000))
    assert pair.spans is not None
    assert (pair.spans[0][0], pair.spans[-1][1]) == (0, len(text))
    whole = 0
    for (start, end), body in zip(pair.spans, _bodies(pair, reference, kind), strict=True):
        # A window may begin or end in the middle of a word, whose half is other tokens by itself.
        whole += reference.encode(text[start:end], add_special_tokens=False).ids == body
    assert whole > len(pair.spans) / 3


@pytest.mark.parametrize("kind", KINDS)
def test_no_more_windows_than_asked_for_and_what_is_left_out_is_told(
    make_tokenizer: Make, reference: Tokenizer, kind: str
) -> None:
    """The first ones; a document that fits in them has lost nothing."""
    text = _text(9, 400)
    tokenizer = make_tokenizer(kind, max_length=WINDOW)
    everything = _encode(tokenizer, text, Cut(max_chunks=1000))
    count = len(everything.windows)
    assert count > 5
    for most in (1, 2, 5, count - 1, count, count + 1):
        pair = _encode(tokenizer, text, Cut(max_chunks=most))
        kept = min(most, count)
        assert _bodies(pair, reference, kind) == _bodies(everything, reference, kind)[:kept]
        assert pair.spans == (everything.spans or ())[:kept]
        assert pair.truncated == (most < count)
    assert (
        _encode(tokenizer, text, Cut(max_chunks=1)).windows[0].ids.tolist()
        == _encode(tokenizer, text, Cut()).windows[0].ids.tolist()
    )


@pytest.mark.parametrize("text", ["", " ", "a", "two words", "\U0001f600"], ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_a_document_that_fits_is_one_window_of_all_its_characters(make_tokenizer: Make, kind: str, text: str) -> None:
    """With the very tokens that it has without windows."""
    tokenizer = make_tokenizer(kind, max_length=WINDOW)
    pair, plain = _encode(tokenizer, text, Cut(max_chunks=4)), _encode(tokenizer, text, Cut())
    assert [window.ids.tolist() for window in pair.windows] == [plain.windows[0].ids.tolist()]
    assert (pair.spans, pair.truncated, pair.token_count) == (((0, len(text)),), False, plain.token_count)
    assert plain.spans is None


def test_a_limit_for_documents_is_one_for_each_window(make_tokenizer: Make, reference: Tokenizer) -> None:
    """Smaller windows, and more of them, down to a single token."""
    text = _text(11, 60)
    tokens = reference.encode(text, add_special_tokens=False).ids
    for limit in (1, 7, 16):
        pair = _encode(make_tokenizer(max_length=WINDOW), text, Cut(limit, max_chunks=1000))
        bodies = _bodies(pair, reference, "bi-encoder")
        assert max(map(len, bodies)) == limit
        assert bodies[0] + [token for body in bodies[1:] for token in body[limit // 8 :]] == tokens


def test_each_window_has_the_document_s_prompt(make_tokenizer: Make, reference: Tokenizer) -> None:
    """And room for it; spans count the document's characters alone."""
    text = _text(13, 200)
    tokenizer = make_tokenizer(max_length=WINDOW, document_prompt="passage: ")
    pair = _encode(tokenizer, text, Cut(max_chunks=1000))
    prompt = reference.encode("passage: ", add_special_tokens=False).ids
    bodies = _bodies(pair, reference, "bi-encoder")
    assert all(body[: len(prompt)] == prompt and len(body) <= WINDOW - 2 for body in bodies)
    assert pair.spans is not None
    assert (pair.spans[0][0], pair.spans[-1][1]) == (0, len(text))
    short = _encode(tokenizer, "two words", Cut(max_chunks=4))
    assert short.windows[0].ids.tolist() == _encode(tokenizer, "two words", Cut()).windows[0].ids.tolist()


@pytest.mark.parametrize("prompt", ["", "passage: "])
def test_a_cut_on_the_left_keeps_the_end(make_tokenizer: Make, reference: Tokenizer, prompt: str) -> None:
    """And the prompt, which is not the document's; also of texts that are far longer than the window."""
    tokenizer = make_tokenizer(max_length=WINDOW, document_prompt=prompt)
    head = reference.encode(prompt, add_special_tokens=False).ids
    for words in (5, 200, 20_000):
        text = _text(words, words)
        tokens = reference.encode(text, add_special_tokens=False).ids
        pair = _encode(tokenizer, text, Cut(side="left"))
        [body] = _bodies(pair, reference, "bi-encoder")
        assert body == head + tokens[-(WINDOW - 2 - len(head)) :]
        assert pair.truncated == (len(tokens) > WINDOW - 2 - len(head))
        assert pair.spans is None


def test_a_limit_counts_from_the_left_too(make_tokenizer: Make, reference: Tokenizer) -> None:
    """The last tokens stay."""
    pair = _encode(make_tokenizer(max_length=WINDOW), "one two three four five", Cut(2, side="left"))
    assert _bodies(pair, reference, "bi-encoder") == [reference.encode("four five", add_special_tokens=False).ids]


@pytest.mark.parametrize("blank", [" ", "\n", "\0", "\u200b"], ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_a_long_document_of_nothing_is_a_window_of_nothing(make_tokenizer: Make, kind: str, blank: str) -> None:
    """It has no tokens however much of it is read, and may have some behind that: it counts as cut."""
    pair = _encode(make_tokenizer(kind, max_length=WINDOW), blank * 300_000, Cut(max_chunks=1))
    assert (len(pair.windows), pair.spans, pair.truncated) == (1, ((0, 0),), True)
