"""The tokenizer's bounds: what is read of texts that make few tokens, and how requests share a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from tokenizers import Encoding, Tokenizer

from bento_service import tokenizer as room
from bento_service.errors import QueryTooLong
from bento_service.tokenizer import Cut, PairTokenizer, TokenizedPair

Make = Callable[..., Any]
CLS, SEP = 101, 102
WINDOW = 256
# Characters that are read, at most, of a bi-encoder's text, of a pair's query, and of a document beside a query of one token.
MOST = room._MOST_CHARACTERS_PER_TOKEN * (WINDOW - 2 + room._UNTRUSTED_TOKENS)
MOST_OF_QUERY = room._MOST_CHARACTERS_PER_TOKEN * (WINDOW * 3 // 4 + room._UNTRUSTED_TOKENS)


class CountedTokenizer:
    """The Rust tokenizer, with a count of the characters it reads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.characters = 0

    def __getattr__(self, name: str) -> Any:
        """Hand everything else on."""
        return getattr(self._tokenizer, name)

    def encode_batch_fast(self, texts: Sequence[str], **named: Any) -> list[Encoding]:
        """Count and hand on."""
        self.characters += sum(map(len, texts))
        return self._tokenizer.encode_batch_fast(texts, **named)  # type: ignore[no-any-return]


class LoggedTokenizer(PairTokenizer):
    """Remembers each job of its threads: the request and the lengths of the documents."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.jobs: list[tuple[int, list[int]]] = []

    def encode_now(
        self, query: str, documents: Sequence[str], cut: Cut, deadline: float, request: int, **named: Any
    ) -> list[TokenizedPair]:
        """Take note."""
        self.jobs.append((request, list(map(len, documents))))
        return super().encode_now(query, documents, cut, deadline, request, **named)


def _encode(tokenizer: PairTokenizer, *documents: str, query: str = "q") -> list[TokenizedPair]:
    return tokenizer.encode_now(query, documents, Cut(), 12.5, 7)


async def _ask(tokenizer: PairTokenizer, documents: Sequence[str], request: int = 7) -> list[TokenizedPair]:
    return await tokenizer.encode("q", documents, Cut(), deadline=12.5, request=request)


@pytest.mark.parametrize("text", [" ", "a", "\u0301", "\0\u200b", " " * 999 + "sea"], ids=lambda text: f"{text[:3]!r}...")
@pytest.mark.parametrize("more", [0, 1, 100_000])
def test_a_text_that_makes_too_few_tokens_is_read_up_to_the_bound_and_reported_as_cut(
    make_tokenizer: Make, reference: Tokenizer, text: str, more: int
) -> None:
    """What is read of it gives the ids that it gives alone, and at the bound itself nothing is cut."""
    whole = (text * (MOST // len(text) + more))[: MOST + more]
    body = reference.encode(whole[:MOST], add_special_tokens=False).ids
    assert len(body) <= WINDOW - 2
    [pair] = _encode(make_tokenizer(), whole)
    assert pair.windows[0].ids[pair.windows[0].split :].tolist() == [CLS, *body, SEP]
    assert pair.truncated == (more > 0)


@pytest.mark.parametrize("kind", ["cross-encoder", "bi-encoder"])
@pytest.mark.parametrize("text", [" ", "a"])
def test_megabytes_without_tokens_cost_no_more_than_the_bound(make_tokenizer: Make, kind: str, text: str) -> None:
    """Tokenised whole they would take ten seconds: a hundredth is read."""
    tokenizer = make_tokenizer(kind)
    counted = tokenizer._tokenizer = CountedTokenizer(tokenizer._tokenizer)
    short, huge = _encode(tokenizer, text * 1000, text * 16_000_000)
    assert counted.characters < 160_000
    assert huge.windows[0].ids.tolist() == short.windows[0].ids.tolist()
    assert (short.truncated, huge.truncated) == (False, True)


@pytest.mark.parametrize(("kind", "most"), [("cross-encoder", MOST_OF_QUERY), ("bi-encoder", MOST)])
def test_a_query_beyond_the_bound_is_refused_however_few_its_tokens(make_tokenizer: Make, kind: str, most: int) -> None:
    """A query is never cut."""
    tokenizer = make_tokenizer(kind)
    [plain] = _encode(tokenizer, "sea", query="river")
    [padded] = _encode(tokenizer, "sea", query="river".ljust(most))
    assert padded.windows[0].ids.tolist() == plain.windows[0].ids.tolist()
    with pytest.raises(QueryTooLong):
        _encode(tokenizer, "sea", query="river".ljust(most + 1))


@pytest.mark.parametrize(
    ("lengths", "slices"),
    [
        ([], [0]),
        ([5], [1]),
        ([5] * 32, [32]),
        ([5] * 33, [32, 1]),
        ([5] * 100, [32, 32, 32, 4]),
        ([50_000, 50_000], [2]),
        ([50_000, 50_001], [1, 1]),
        ([200_000, 5, 5], [1, 2]),
        ([5, 200_000, 5], [1, 1, 1]),
        ([0] * 40, [32, 8]),
    ],
    ids=str,
)
def test_a_job_holds_a_few_documents_or_one_large_one(make_tokenizer: Make, lengths: list[int], slices: list[int]) -> None:
    """None is lost, and they come back in their order."""
    tokenizer = make_tokenizer(room=LoggedTokenizer)
    texts = [f"{number} ".ljust(length)[:length] for number, length in enumerate(lengths)]
    made = asyncio.run(_ask(tokenizer, texts))
    assert [len(documents) for _, documents in tokenizer.jobs] == slices
    assert [length for _, documents in tokenizer.jobs for length in documents] == lengths
    assert [pair.windows[0].pack() for pair in made] == [pair.windows[0].pack() for pair in _encode(tokenizer, *texts)]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("big", [["sea"] * 1000, ["sea" * 20_000] * 30], ids=["many documents", "large documents"])
def test_a_small_request_waits_for_a_job_of_a_big_one_and_not_for_all(make_tokenizer: Make, big: list[str], workers: int) -> None:
    """Though they share the threads and the big one came first."""
    tokenizer = make_tokenizer(room=LoggedTokenizer, workers=workers)

    async def both() -> list[int]:
        ended: list[int] = []

        async def one(documents: list[str], request: int) -> None:
            assert len(await _ask(tokenizer, documents, request)) == len(documents)
            ended.append(request)

        await asyncio.gather(one(big, 1), one(["river"], 2))
        return ended

    assert asyncio.run(both()) == [2, 1]
    requests = [request for request, _ in tokenizer.jobs]
    assert requests.index(2) <= workers
    assert len(requests) > 20
