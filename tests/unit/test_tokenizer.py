"""The tokenizer: ids as transformers gives them, true counts and flags, and no work for text that is cut anyway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from bento_service import tokenizer as room
from bento_service.errors import QueryTooLong
from bento_service.tokenizer import Cut, PairTokenizer, TokenizedPair

Make = Callable[..., PairTokenizer]
CLS, SEP = 101, 102
WINDOW = 256
WORDS = ["the", "river", "rises,", "crosses", "3", "plains;", "Größe", "中文", "naïve", "café", "unbelievably", "x-ray"]
# Characters of a document that are read at first, where a word may be cut in two.
SEAM = room._CHARACTERS_PER_TOKEN * (WINDOW - 2 + room._UNTRUSTED_TOKENS)


def _encode(tokenizer: PairTokenizer, query: str, documents: Sequence[str], limit: int | None = None) -> list[TokenizedPair]:
    return tokenizer.encode_now(query, documents, Cut(limit), 12.5, 7)


def _texts(seed: int, count: int, most: int) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, size=generator.integers(0, most))) for _ in range(count)]


@pytest.mark.parametrize("window", [64, 512])
def test_a_cross_encoder_s_pairs_are_those_of_transformers(make_tokenizer: Make, builtin_folder: Path, window: int) -> None:
    """Ids and type ids of the pair encoding with truncation="only_second"."""
    documents = [*_texts(1, 30, 400), "", " ", "\0", "x" * 300, WORDS[0]]
    query = "which river crosses naïve 中文?"
    pairs = _encode(make_tokenizer("cross-encoder", max_length=window), query, documents)
    transformers = AutoTokenizer.from_pretrained(str(builtin_folder))
    queries = [query] * len(documents)
    expected = transformers(queries, documents, truncation="only_second", max_length=window, return_token_type_ids=True)
    whole = transformers(queries, documents)["input_ids"]
    for number, pair in enumerate(pairs):
        assert pair.windows[0].ids.tolist() == expected["input_ids"][number]
        assert pair.windows[0].type_ids is not None
        assert pair.windows[0].type_ids.tolist() == expected["token_type_ids"][number]
        assert pair.token_count == len(expected["input_ids"][number]) <= window
        assert pair.truncated == (len(whole[number]) > window)
        assert pair.windows[0].split == 0
    assert {pair.truncated for pair in pairs} == {True, False}


def test_a_model_without_token_types_gets_none(make_tokenizer: Make) -> None:
    """They would be bytes on the way for nothing."""
    [pair] = _encode(make_tokenizer("cross-encoder", uses_token_types=False), "q", ["d"])
    assert pair.windows[0].type_ids is None


def test_a_bi_encoder_s_texts_are_two_sequences(make_tokenizer: Make, reference: Tokenizer) -> None:
    """The query's first, each with its special tokens and a window of its own."""
    documents = [*_texts(2, 20, 400), ""]
    query = "which river"
    query_ids = reference.encode(query).ids
    for text, pair in zip(documents, _encode(make_tokenizer(), query, documents), strict=True):
        body = reference.encode(text, add_special_tokens=False).ids
        ids = pair.windows[0].ids.tolist()
        assert ids[: pair.windows[0].split] == query_ids
        assert ids[pair.windows[0].split :] == [CLS, *body[: WINDOW - 2], SEP]
        assert pair.truncated == (len(body) > WINDOW - 2)
        assert pair.token_count == len(ids)


def test_prompts_of_a_bi_encoder_stand_before_its_texts(make_tokenizer: Make, reference: Tokenizer) -> None:
    """Each side has its own."""
    [pair] = _encode(make_tokenizer(query_prompt="query: ", document_prompt="passage: "), "a", ["b"])
    assert pair.windows[0].ids.tolist() == reference.encode("query: a").ids + reference.encode("passage: b").ids


def test_an_instruction_takes_the_place_of_the_model_s_own(make_tokenizer: Make, reference: Tokenizer) -> None:
    """Where the model's prompt has one; elsewhere it changes nothing. Braces in it are text."""
    prompt = "Instruct: find it\nQuery: "
    with_one = make_tokenizer(query_prompt=prompt, instruction_prompt="Instruct: {instruction}\nQuery: ")
    for instruction, query in ((None, prompt), ("", prompt), ("be {kind}", "Instruct: be {kind}\nQuery: ")):
        [pair] = with_one.encode_now("a", ["b"], Cut(), 12.5, 7, instruction=instruction)
        assert pair.windows[0].ids.tolist() == reference.encode(query + "a").ids + reference.encode("b").ids
    [pair] = make_tokenizer().encode_now("a", ["b"], Cut(), 12.5, 7, instruction="be kind")
    assert pair.windows[0].ids.tolist() == reference.encode("a").ids + reference.encode("b").ids


def test_deadline_and_request_travel_with_every_pair(make_tokenizer: Make) -> None:
    """The Scorer drops late ones and tells requests apart."""
    for kind in ("cross-encoder", "bi-encoder"):
        pairs = _encode(make_tokenizer(kind), "q", ["a", "b"])
        assert [(pair.windows[0].deadline, pair.windows[0].request) for pair in pairs] == [(12.5, 7)] * 2


@pytest.mark.parametrize(("kind", "most"), [("cross-encoder", WINDOW - 4), ("bi-encoder", WINDOW - 2)])
def test_the_flag_turns_at_the_first_token_that_is_lost(make_tokenizer: Make, kind: str, most: int) -> None:
    """A document that just fits is whole."""
    fits, over = _encode(make_tokenizer(kind), "q", ["sea " * most, "sea " * (most + 1)])
    assert (fits.truncated, over.truncated) == (False, True)
    assert fits.windows[0].ids.tolist() == over.windows[0].ids.tolist()


@pytest.mark.parametrize("kind", ["cross-encoder", "bi-encoder"])
@pytest.mark.parametrize(("limit", "kept"), [(1, 1), (3, 3), (5, 5), (6, 5), (10**30, 5), (None, 5)])
def test_max_tokens_per_doc_counts_the_document_s_own_tokens(
    make_tokenizer: Make, kind: str, limit: int | None, kept: int
) -> None:
    """Without special tokens; more than there are changes nothing."""
    [pair] = _encode(make_tokenizer(kind), "q", ["one two three four five"], limit)
    [empty] = _encode(make_tokenizer(kind), "q", [""])
    assert pair.token_count - empty.token_count == kept
    assert pair.truncated == (kept < 5)


@pytest.mark.parametrize(("kind", "most"), [("cross-encoder", 192), ("bi-encoder", 254)])
def test_a_query_is_refused_rather_than_cut(make_tokenizer: Make, kind: str, most: int) -> None:
    """Beyond three quarters of a pair's window, or its own window; the message holds no text."""
    tokenizer = make_tokenizer(kind)
    [pair] = _encode(tokenizer, "sea " * most, ["river"])
    assert pair.windows[0].ids.tolist().count(pair.windows[0].ids[1]) == most
    for count in (most + 1, 50_000):
        with pytest.raises(QueryTooLong, match=f"more than {most} tokens") as caught:
            _encode(tokenizer, "sea " * count, ["river"])
        assert caught.value.param == "query"
        assert "sea" not in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        " ".join(_texts(3, 1, 60_000)),
        "\u4e2d" * 50_000,
        "a" * 90_000,
        " " * 90_000 + "end",
        "e\u0301" * 45_000,
        "\0\u200b" * 45_000 + "end",
        # What stands before the cut makes few tokens, what is cut is a word too long for the vocabulary: one [UNK].
        *["the " * n + " " * (SEAM - 4 * n - cut) + "xq7" * 67 + " end" * 3000 for n, cut in ((240, 100), (253, 99), (200, 100))],
    ],
    ids=lambda text: f"{text[:3]!r}, {len(text)} characters",
)
def test_reading_no_more_than_needed_gives_the_ids_of_the_whole(make_tokenizer: Make, reference: Tokenizer, text: str) -> None:
    """Whatever stands where a long document is cut before tokenising."""
    body = reference.encode(text, add_special_tokens=False).ids
    [pair] = _encode(make_tokenizer(), "q", [text])
    assert pair.windows[0].ids[pair.windows[0].split :].tolist() == [CLS, *body[: WINDOW - 2], SEP]
    assert pair.truncated == (len(body) > WINDOW - 2)


@pytest.mark.alone
def test_ten_megabytes_cost_no_more_than_what_is_read_of_them(make_tokenizer: Make) -> None:
    """Tokenised whole they would take ten seconds."""
    text = " ".join(_texts(4, 1, 20_000))
    tokenizer = make_tokenizer("cross-encoder")
    start = time.perf_counter()
    [huge] = _encode(tokenizer, "q", [text * (10_000_000 // len(text) + 1)])
    assert time.perf_counter() - start < 1
    [long] = _encode(tokenizer, "q", [text])
    assert huge.windows[0].ids.tolist() == long.windows[0].ids.tolist()
    assert huge.truncated


def test_threads_keep_the_order_of_documents(make_tokenizer: Make) -> None:
    """Also where they do not divide evenly."""
    tokenizer = make_tokenizer(workers=3)
    for count in (1, 2, 3, 7, 100):
        texts = [f"{text} {number}" for number, text in enumerate(_texts(5, count, 20))]
        made = asyncio.run(tokenizer.encode("q", texts, Cut(), deadline=12.5, request=7))
        assert [pair.windows[0].pack() for pair in made] == [pair.windows[0].pack() for pair in _encode(tokenizer, "q", texts)]


def test_closing_twice_is_closing(make_tokenizer: Make) -> None:
    """Afterwards nothing is encoded any more."""
    tokenizer = make_tokenizer()
    tokenizer.close()
    tokenizer.close()
    with pytest.raises(RuntimeError, match="shutdown"):
        asyncio.run(tokenizer.encode("q", ["d"], Cut(), deadline=12.5, request=7))
