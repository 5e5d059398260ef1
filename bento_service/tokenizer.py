"""Texts to token ids, with what was counted and what was cut; no torch, no transformers.

Cross-encoder: the document is cut, never the query. Bi-encoder: query and document have a window each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer

from bento_service.errors import QueryTooLong
from bento_service.model_info import ModelInfo
from bento_service.pairs import TokenPair

# Text beyond what can fill the window is not tokenised: a 10 MB document costs milliseconds instead of seconds.
_CHARACTERS_PER_TOKEN = 16
# A cut in the middle of a word changes the tokens near it, so this many tokens before it are not trusted
# (WordPiece makes up to 100 pieces of what is left of a longer word, which whole is one [UNK]).
_UNTRUSTED_TOKENS = 128
# Text of which not even 256 characters make a token (blanks, one endless word) is cut there, and reported as cut.
_MOST_CHARACTERS_PER_TOKEN = 256
_QUERY_SHARE = 0.75
# One job of a tokenising thread: small enough that a big request does not keep the others waiting.
_SLICE_DOCUMENTS = 32
_SLICE_CHARACTERS = 100_000


@dataclass(frozen=True, slots=True)
class TokenizedPair:
    """tokens: what the model reads · token_count: of the pair, special tokens included, after truncation."""

    tokens: TokenPair
    token_count: int
    truncated: bool


class PairTokenizer:
    """Tokenises the pairs of one request at a time in threads of its own (the Rust code releases the GIL)."""

    def __init__(self, tokenizer_json: Path, info: ModelInfo, *, max_length: int, workers: int = 1) -> None:
        self._tokenizer = Tokenizer.from_file(str(tokenizer_json))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._info = info
        self._max_length = max_length
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="tokenizer")

    def close(self) -> None:
        """End the threads; safe to call twice."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def encode(
        self, query: str, documents: Sequence[str], *, max_tokens_per_doc: int | None, deadline: float, request: int
    ) -> list[TokenizedPair]:
        """Tokenise each (query, document) pair, in the order of documents.

        Raises QueryTooLong when the query would leave a document less than a quarter of the window.
        """
        loop = asyncio.get_running_loop()
        pairs: list[TokenizedPair] = []
        slices = list(_slices(documents))
        # As many slices at a time as there are threads, so that requests take turns here too.
        for start in range(0, len(slices), self._workers):
            jobs = [
                loop.run_in_executor(self._pool, self.encode_now, query, part, max_tokens_per_doc, deadline, request)
                for part in slices[start : start + self._workers]
            ]
            for part in await asyncio.gather(*jobs):
                pairs += part
        return pairs

    def encode_now(
        self, query: str, documents: Sequence[str], max_tokens_per_doc: int | None, deadline: float, request: int
    ) -> list[TokenizedPair]:
        """encode() without the threads."""
        if self._info.kind == "cross-encoder":
            return self._encode_joint(query, documents, max_tokens_per_doc, deadline, request)
        return self._encode_apart(query, documents, max_tokens_per_doc, deadline, request)

    def _encode_joint(
        self, query: str, documents: Sequence[str], max_tokens_per_doc: int | None, deadline: float, request: int
    ) -> list[TokenizedPair]:
        """Cross-encoder: one sequence for the pair, assembled by the tokenizer's own post-processor."""
        limit = int(self._max_length * _QUERY_SHARE)
        head = self._query(query, limit)
        room = self._max_length - len(head) - self._tokenizer.num_special_tokens_to_add(is_pair=True)
        room = min(room, max_tokens_per_doc) if max_tokens_per_doc else room
        pairs = []
        for body, clipped in self._bodies(documents, room):
            truncated = clipped or len(body) > room
            if truncated:
                body.truncate(room)
            joint = self._tokenizer.post_process(head, body)
            ids = np.array(joint.ids, np.uint32)
            types = np.array(joint.type_ids, np.uint8) if self._info.uses_token_types else None
            pairs.append(TokenizedPair(TokenPair(ids, types, 0, deadline, request), len(ids), truncated))
        return pairs

    def _encode_apart(
        self, query: str, documents: Sequence[str], max_tokens_per_doc: int | None, deadline: float, request: int
    ) -> list[TokenizedPair]:
        """Bi-encoder: two sequences, the query's first."""
        specials = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        room = self._max_length - specials
        head = self._tokenizer.post_process(self._query(self._info.query_prompt + query, room))
        query_ids = np.array(head.ids, np.uint32)
        room = min(room, max_tokens_per_doc) if max_tokens_per_doc else room
        pairs = []
        for body, clipped in self._bodies([self._info.document_prompt + text for text in documents], room):
            truncated = clipped or len(body) > room
            if truncated:
                body.truncate(room)
            document_ids = np.array(self._tokenizer.post_process(body).ids, np.uint32)
            ids = np.concatenate([query_ids, document_ids])
            pairs.append(TokenizedPair(TokenPair(ids, None, len(query_ids), deadline, request), len(ids), truncated))
        return pairs

    def _query(self, query: str, limit: int) -> Encoding:
        [(head, clipped)] = self._bodies([query], limit)
        if clipped or len(head) > limit:
            raise QueryTooLong(
                f"the query has more than {limit} tokens, the most that this model takes beside a document: shorten it",
                param="query",
            )
        return head

    def _bodies(self, texts: Sequence[str], room: int) -> list[tuple[Encoding, bool]]:
        """Encode without special tokens; of a long text only as much as is sure to hold its first `room` tokens.

        The flag says that a text was cut before it held them, for want of tokens.
        """
        size = _CHARACTERS_PER_TOKEN * (room + _UNTRUSTED_TOKENS)
        most = _MOST_CHARACTERS_PER_TOKEN * (room + _UNTRUSTED_TOKENS)
        encodings: list[Encoding] = self._tokenizer.encode_batch_fast([text[:size] for text in texts], add_special_tokens=False)
        clipped = [False] * len(texts)
        for index, text in enumerate(texts):
            grown = size
            while grown < len(text) and len(encodings[index]) <= room + _UNTRUSTED_TOKENS:
                if grown >= most:
                    clipped[index] = True
                    break
                grown *= 4
                encodings[index] = self._tokenizer.encode_batch_fast([text[:grown]], add_special_tokens=False)[0]
        return list(zip(encodings, clipped, strict=True))


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
