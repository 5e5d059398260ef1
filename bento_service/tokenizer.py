"""Texts to token ids, with what was counted and what was cut; no torch, no transformers.

Cross-encoder and yes/no model: the document is cut, never the query or the prompt. Bi-encoder: query and document have a window each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from tokenizers import Encoding, Tokenizer

from bento_service.errors import QueryTooLong
from bento_service.model_info import ModelInfo
from bento_service.pairs import TokenPair

# Text beyond what can fill the window is not tokenised: a 10 MB document costs milliseconds instead of seconds.
_CHARACTERS_PER_TOKEN = 16
# Of many windows' text that is tokenised in vain would be many times as much; where this is too little, more is read.
_WINDOWS_CHARACTERS_PER_TOKEN = 6
# A cut in the middle of a word changes the tokens near it, so this many tokens before it are not trusted
# (WordPiece makes up to 100 pieces of what is left of a longer word, which whole is one [UNK]).
_UNTRUSTED_TOKENS = 128
# Text of which not even 256 characters make a token (blanks, one endless word) is cut there, and reported as cut.
_MOST_CHARACTERS_PER_TOKEN = 256
_QUERY_SHARE = 0.75
# One job of a tokenising thread: small enough that a big request does not keep the others waiting.
_SLICE_DOCUMENTS = 32
_SLICE_CHARACTERS = 100_000
# Of a window's tokens, what the next window begins with: a sentence that one window cuts is whole in the next.
_OVERLAP = 8


@dataclass(frozen=True, slots=True)
class Cut:
    """How documents are made to fit.

    max_tokens_per_doc: of a window, what a document gets at most · side: which end is cut off · max_chunks: cut a document into so many
    overlapping windows at most, instead of cutting it off after the first.
    """

    max_tokens_per_doc: int | None = None
    side: Literal["right", "left"] = "right"
    max_chunks: int | None = None


@dataclass(frozen=True, slots=True)
class TokenizedPair:
    """What the model reads of a pair: one sequence, or one for each window of a long document.

    token_count: of all of them, special tokens included, after truncation · truncated: whether text was lost · spans: of each window,
    where it begins and ends in the document, in characters; None unless the document was to be cut into windows.
    """

    windows: tuple[TokenPair, ...]
    token_count: int
    truncated: bool
    spans: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A document's tokens without special ones, window by window."""

    windows: list[Encoding]
    truncated: bool
    spans: tuple[tuple[int, int], ...] | None = None


class PairTokenizer:
    """Tokenises the pairs of one request at a time in threads of its own (the Rust code releases the GIL)."""

    def __init__(self, tokenizer_json: Path, info: ModelInfo, *, max_length: int, workers: int = 1) -> None:
        self._tokenizer = Tokenizer.from_file(str(tokenizer_json))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._info = info
        self._suffix = self._ids(info.suffix)
        own = (info.instruction_prompt or info.query_prompt).replace("{instruction}", "")
        self._prompt_tokens = len(self._ids(own + info.document_prompt))
        self._max_length = max_length
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="tokenizer")

    def close(self) -> None:
        """End the threads; safe to call twice."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def encode(
        self, query: str, documents: Sequence[str], cut: Cut, *, deadline: float, request: int, instruction: str | None = None
    ) -> list[TokenizedPair]:
        """Tokenise each (query, document) pair, in the order of documents.

        Raises QueryTooLong when the query would leave a document less than a quarter of the window.
        """
        loop = asyncio.get_running_loop()
        pairs: list[TokenizedPair] = []
        slices = list(_slices(documents))
        encode = partial(self.encode_now, instruction=instruction)
        # As many slices at a time as there are threads, so that requests take turns here too.
        for start in range(0, len(slices), self._workers):
            jobs = [
                loop.run_in_executor(self._pool, encode, query, part, cut, deadline, request)
                for part in slices[start : start + self._workers]
            ]
            for part in await asyncio.gather(*jobs):
                pairs += part
        return pairs

    def encode_now(
        self, query: str, documents: Sequence[str], cut: Cut, deadline: float, request: int, *, instruction: str | None = None
    ) -> list[TokenizedPair]:
        """encode() without the threads."""
        query = self._info.prompt_for(instruction) + query
        if self._info.kind == "cross-encoder":
            return self._encode_joint(query, documents, cut, deadline, request)
        if self._info.kind == "yes-no":
            return self._encode_prompted(query, documents, cut, deadline, request)
        return self._encode_apart(query, documents, cut, deadline, request)

    def _encode_joint(self, query: str, documents: Sequence[str], cut: Cut, deadline: float, request: int) -> list[TokenizedPair]:
        """Cross-encoder: one sequence for the pair, assembled by the tokenizer's own post-processor."""
        limit = int(self._max_length * _QUERY_SHARE)
        head = self._query(query, limit)
        room = self._max_length - len(head) - self._tokenizer.num_special_tokens_to_add(is_pair=True)

        def pair(window: Encoding) -> TokenPair:
            joint = self._tokenizer.post_process(head, window)
            types = np.array(joint.type_ids, np.uint8) if self._info.uses_token_types else None
            return TokenPair(np.array(joint.ids, np.uint32), types, 0, deadline, request)

        return [_pair(fitted, pair) for fitted in self._fit(documents, room, cut, "")]

    def _encode_prompted(
        self, query: str, documents: Sequence[str], cut: Cut, deadline: float, request: int
    ) -> list[TokenizedPair]:
        """Yes/no model: one prompt for the pair, its text up to the document's end tokenised as one, as the models' own code does.

        So a document's first word takes the blank before it. What is behind the document begins with a special token, at which
        texts part anyway; its ids are appended. Where a document is cut on the left or into windows, it is tokenised apart, with that
        blank: other ids than a whole text's where a tokenizer would join the document with what stands before the blank.
        """
        lead = query + self._info.document_prompt
        room = self._max_length - len(self._suffix)
        head = self._query(lead.rstrip(), int(room * _QUERY_SHARE), self._prompt_tokens)
        if cut.max_tokens_per_doc:
            cut = replace(cut, max_tokens_per_doc=len(head) + cut.max_tokens_per_doc)

        def pair(window: Encoding) -> TokenPair:
            return TokenPair(np.array(window.ids + self._suffix, np.uint32), None, len(head), deadline, request)

        return [_pair(fitted, pair) for fitted in self._fit(documents, room, cut, lead)]

    def _encode_apart(self, query: str, documents: Sequence[str], cut: Cut, deadline: float, request: int) -> list[TokenizedPair]:
        """Bi-encoder: two sequences, the query's first."""
        room = self._max_length - self._tokenizer.num_special_tokens_to_add(is_pair=False)
        query_ids = np.array(self._tokenizer.post_process(self._query(query, room)).ids, np.uint32)

        def pair(window: Encoding) -> TokenPair:
            document_ids = np.array(self._tokenizer.post_process(window).ids, np.uint32)
            return TokenPair(np.concatenate([query_ids, document_ids]), None, len(query_ids), deadline, request)

        return [_pair(fitted, pair) for fitted in self._fit(documents, room, cut, self._info.document_prompt)]

    def _query(self, query: str, limit: int, own_tokens: int = 0) -> Encoding:
        """Encode what stands before a document; own_tokens: how many of it are the model's own prompt."""
        [(head, clipped)] = self._bodies([query], limit)
        if clipped or len(head) > limit:
            what = "query and its instruction have" if own_tokens else "query has"
            raise QueryTooLong(
                f"the {what} more than {limit - own_tokens} tokens, the most that this model takes beside a document: shorten it",
                param="query",
            )
        return head

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _fit(self, texts: Sequence[str], room: int, cut: Cut, prompt: str) -> Iterator[_Fitted]:
        """Make documents fit into `room` tokens, each window with the prompt before it."""
        room = min(room, cut.max_tokens_per_doc or room)
        plain = cut.max_chunks is None and (cut.side == "right" or not prompt)
        bodies = self._bodies([prompt + text for text in texts], room, left=plain and cut.side == "left")
        for text, (body, clipped) in zip(texts, bodies, strict=True):
            truncated = clipped or len(body) > room
            if truncated and not plain:
                yield self._fit_apart(text, room, cut, prompt)
                continue
            body.truncate(room, direction=cut.side)
            yield _Fitted([body], truncated, ((0, len(text)),) if cut.max_chunks else None)

    def _fit_apart(self, text: str, room: int, cut: Cut, prompt: str) -> _Fitted:
        """Make a document fit that does not as it stands, and that is not simply cut on the right behind its prompt."""
        # A blank between the two belongs to the document's first word, as where they are tokenised together.
        blank = prompt[len(prompt.rstrip()) :]
        head = self._tokenizer.encode(prompt.rstrip(), add_special_tokens=False)
        room = max(1, room - len(head))
        overlap = room // _OVERLAP
        most = room + ((cut.max_chunks or 1) - 1) * (room - overlap)
        [(body, clipped)] = self._bodies([blank + text], most, left=not cut.max_chunks, windows=True)
        truncated = clipped or len(body) > most
        body.truncate(most, direction="right" if cut.max_chunks else "left")
        windows = [body]
        if len(body) > room:
            body.truncate(room, stride=overlap)
            windows += body.overflowing
        spans = tuple(_span(window, len(blank)) for window in windows) if cut.max_chunks else None
        if prompt:
            windows = [Encoding.merge([head, window], growing_offsets=False) for window in windows]
        return _Fitted(windows, truncated, spans)

    def _bodies(
        self, texts: Sequence[str], room: int, *, left: bool = False, windows: bool = False
    ) -> list[tuple[Encoding, bool]]:
        """Encode without special tokens; of a long text only as much as is sure to hold its first (or last) `room` tokens.

        The flag says that a text was cut before it held them, for want of tokens. windows: `room` is many of them, and the fast way,
        which does not say where in its text a token stands, will not do.
        """
        encode = self._tokenizer.encode_batch if windows else self._tokenizer.encode_batch_fast
        size = (_WINDOWS_CHARACTERS_PER_TOKEN if windows else _CHARACTERS_PER_TOKEN) * (room + _UNTRUSTED_TOKENS)
        most = _MOST_CHARACTERS_PER_TOKEN * (room + _UNTRUSTED_TOKENS)

        def part(text: str, characters: int) -> str:
            return text[-characters:] if left else text[:characters]

        encodings: list[Encoding] = encode([part(text, size) for text in texts], add_special_tokens=False)
        clipped = [False] * len(texts)
        for index, text in enumerate(texts):
            grown = size
            while grown < len(text) and len(encodings[index]) <= room + _UNTRUSTED_TOKENS:
                if grown >= most:
                    clipped[index] = True
                    break
                grown *= 4
                encodings[index] = encode([part(text, grown)], add_special_tokens=False)[0]
        return list(zip(encodings, clipped, strict=True))


def _pair(fitted: _Fitted, pair: Callable[[Encoding], TokenPair]) -> TokenizedPair:
    windows = tuple(pair(window) for window in fitted.windows)
    return TokenizedPair(windows, sum(len(window.ids) for window in windows), fitted.truncated, fitted.spans)


def _span(window: Encoding, before: int) -> tuple[int, int]:
    """Where a window begins and ends in its text, which has some characters before it; some tokens stand for no character."""
    start, end = min((start for start, _ in window.offsets), default=0), max((end for _, end in window.offsets), default=0)
    return max(0, start - before), max(0, end - before)


def _slices(documents: Sequence[str]) -> Iterator[Sequence[str]]:
    """Cut a request's documents into jobs."""
    start = characters = 0
    for place, document in enumerate(documents):
        full = place - start >= _SLICE_DOCUMENTS or characters + len(document) > _SLICE_CHARACTERS
        if place > start and full:
            yield documents[start:place]
            start, characters = place, 0
        characters += len(document)
    yield documents[start:]
