"""The whole story of a rerank request.

    query ▶ distinct documents ▶ known scores ▶ token ids and scores of the rest ▶ ranked results

parse (dialects, schemas) comes before it, the answer's format (dialects) after it.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from bento_service.admission import Admission, Place, deadline_passed
from bento_service.cache.keys import pair_keys
from bento_service.dedup import Deduplication, Progress
from bento_service.errors import DocumentTooLong, UnknownModel
from bento_service.flight import Answer, Origin
from bento_service.metrics import EntryMetrics
from bento_service.model_info import ModelInfo
from bento_service.pairs import PairScore
from bento_service.ranking import activate, rank
from bento_service.schemas import CacheCounts, CacheUse, RerankQuery, RerankResult, Timing
from bento_service.tokenizer import Cut, PairTokenizer, TokenizedPair
from bento_service.windows import Window, Windows

_CHARACTERS_PER_TOKEN = 4  # of English, about
_INSTRUCTION_IGNORED = "instruction was ignored: this model's template has none"


@dataclass(frozen=True, slots=True)
class _Work:
    """What is to be done for one query. place: in the queue."""

    query: RerankQuery
    texts: list[str]
    distinct: list[str]
    deadline: float
    place: Place
    timing: Timing = field(default_factory=Timing)


class Pipeline:
    """Answers rerank queries.

    model_name: what answers call the model · max_length: its window in use, tokens · fingerprint: finds the model's, None while no
    Scorer was heard · strict_model: refuse requests that name another one.
    """

    def __init__(
        self,
        *,
        info: ModelInfo,
        model_name: str,
        max_length: int,
        fingerprint: Callable[[], str | None],
        tokenizer: PairTokenizer,
        dedup: Deduplication,
        admission: Admission,
        metrics: EntryMetrics,
        strict_model: bool,
    ) -> None:
        self._info = info
        self._model_name = model_name
        self._max_length = max_length
        self._fingerprint = fingerprint
        self._tokenizer = tokenizer
        self._dedup = dedup
        self._admission = admission
        self._metrics = metrics
        self._strict_model = strict_model
        # Starts at random, because entry workers share the Scorers and requests must not be taken for one another.
        self._request_numbers = itertools.count(secrets.randbits(60))

    async def rerank(
        self, query: RerankQuery, *, deadline: float, use: CacheUse = CacheUse.FULL, place: Place | None = None
    ) -> RerankResult:
        """Score every document against the query and rank them.

        deadline: on the clock of time.monotonic() · place: in the queue, where this is one of several queries of a request. Cancelling
        drops the work that is not under way yet, unless others want it too. Raises RequestError.
        """
        if self._strict_model and query.model not in (None, self._model_name, self._model_name.partition(":")[0]):
            raise UnknownModel(f"this server serves {self._model_name}: ask for that, or leave `model` out", param="model")
        texts = [document.text for document in query.documents]
        distinct = list(dict.fromkeys(texts))
        self._metrics.documents.inc(len(texts))
        if len(distinct) < len(texts):
            self._metrics.duplicate_documents.inc(len(texts) - len(distinct))

        if deadline <= time.monotonic():
            raise deadline_passed()
        work = _Work(query, texts, distinct, deadline, place or Place())
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                answers = dict(zip(distinct, await self._answers(work, use), strict=True))
        except TimeoutError:
            raise deadline_passed() from None
        truncated = [index for index, text in enumerate(texts) if answers[text].known.truncated]
        if truncated:
            self._metrics.truncated_documents.inc(len(truncated))
        self._refuse_truncation(query, truncated)

        start = time.monotonic()
        raw = [answers[text].known.raw for text in texts]
        scores = raw if query.raw_scores else [activate(value, self._info.activation) for value in raw]
        ranked = rank(scores, top_n=query.top_n, score_threshold=query.score_threshold)
        self._metrics.stage("rank", start)
        return RerankResult(
            model=query.model or self._model_name,
            ranked=ranked,
            token_count=sum(answers[text].known.token_count for text in texts),
            truncated=truncated,
            cache=_counts([answers[text].origin for text in texts]),
            warnings=[_INSTRUCTION_IGNORED] if query.instruction and not self._info.instruction_prompt else [],
            spans={index: span for index, text in enumerate(texts) if (span := answers[text].known.span)},
            timing=work.timing,
        )

    async def _answers(self, work: _Work, use: CacheUse) -> list[Answer]:
        """Find or compute the scores of the distinct documents, in order."""
        fingerprint, start = self._fingerprint(), time.monotonic()
        if fingerprint is None:
            self._admission.require_scorer()
            fingerprint, use = "", CacheUse.NONE
        keys = pair_keys(work.query, work.distinct, fingerprint=fingerprint, max_length=self._max_length)
        # Who takes a long document for a short one loses patience with it.
        windows = self.pairs_of(work.query) / len(work.texts)
        return await self._dedup.answers(
            keys,
            partial(self._compute, work),
            use=use,
            alone_seconds=lambda pairs: self._admission.seconds_for(math.ceil(windows * pairs)),
            check_room=lambda places: self._admission.check_room(self._expected_windows(work, places), work.place),
            looked_up=partial(self._metrics.stage, "cache", start),
        )

    def pairs_of(self, query: RerankQuery) -> int:
        """Count a query's pairs, those of long documents by their windows, which are estimated: rather too many than too few."""
        # As if each character was a token.
        return self._windows_of(query, [document.text for document in query.documents], characters_per_token=1)

    def _windows_of(self, query: RerankQuery, texts: Sequence[str], *, characters_per_token: int) -> int:
        """Count a query's texts, in windows where they are cut into such."""
        if not query.max_chunks:
            return len(texts)
        tokens = (len(text) // characters_per_token for text in texts)
        return sum(min(query.max_chunks, 1 + count // self._max_length) for count in tokens)

    def _expected_windows(self, work: _Work, places: Sequence[int]) -> int:
        """Estimate in how many windows the documents at these places will be read."""
        texts = [work.distinct[place] for place in places]
        return self._windows_of(work.query, texts, characters_per_token=_CHARACTERS_PER_TOKEN)

    async def _compute(self, work: _Work, places: Sequence[int], progress: Progress) -> None:
        """Tokenise, queue and score pairs, and tell of each call that goes out."""
        expected = self._expected_windows(work, places)
        with self._admission.place_for(expected, work.place):
            start = time.monotonic()
            pairs = await self._tokenize(work, places)
            work.timing.tokenization += time.monotonic() - start
            truncated = {work.distinct[place] for place, pair in zip(places, pairs, strict=True) if pair.truncated}
            self._refuse_truncation(work.query, [index for index, text in enumerate(work.texts) if text in truncated])
            windows = [(place, window) for place, pair in zip(places, pairs, strict=True) for window in Windows(pair).parts()]
            with self._admission.held(len(windows) - expected, work.place):
                await self._score(work, pairs, windows, progress)

    async def _score(
        self, work: _Work, pairs: Sequence[TokenizedPair], windows: Sequence[tuple[int, Window]], progress: Progress
    ) -> None:
        """Score the windows of pairs, each with its pair's place."""
        start = time.monotonic()

        def on_call(chunk: Sequence[int], call: asyncio.Task[list[PairScore]]) -> None:
            places, parts = zip(*(windows[number] for number in chunk), strict=True)
            progress.sent(places, parts, call)
            call.add_done_callback(partial(self._call_ended, time.monotonic()))

        scores = await self._admission.score(
            [tokens.pack() for pair in pairs for tokens in pair.windows],
            deadline=work.deadline,
            place=work.place,
            wanted=lambda number: progress.wants(windows[number][0]),
            on_call=on_call,
        )
        self._metrics.stage("score", start)
        begun = min((score.begun for score in scores if score.begun), default=start)
        work.timing.queue += begun - start
        work.timing.inference += max((score.ended for score in scores), default=begun) - begun

    def _call_ended(self, sent: float, call: asyncio.Task[list[PairScore]]) -> None:
        """Count how long a call waited for its Scorer batch, and how long that took."""
        if call.cancelled() or call.exception():
            return
        if begun := min((score.begun for score in call.result()), default=0.0):
            self._metrics.stage("batch_wait", sent, begun)
            self._metrics.stage("forward", begun, max(score.ended for score in call.result()))

    def _refuse_truncation(self, query: RerankQuery, truncated: list[int]) -> None:
        if truncated and not query.truncation:
            raise DocumentTooLong(
                f"document {truncated[0]} does not fit the model's window and truncation is off: shorten it, or allow truncation",
                param="documents",
            )

    async def _tokenize(self, work: _Work, places: Sequence[int]) -> list[TokenizedPair]:
        start, query = time.monotonic(), work.query
        pairs = await self._tokenizer.encode(
            query.query,
            [work.distinct[place] for place in places],
            Cut(query.max_tokens_per_doc, query.truncation_side, query.max_chunks),
            deadline=work.deadline,
            request=next(self._request_numbers),
            instruction=query.instruction,
        )
        self._metrics.stage("tokenize", start)
        return pairs


def _counts(origins: list[Origin]) -> CacheCounts:
    misses = origins.count(Origin.COMPUTED)
    hits = origins.count(Origin.PROCESS) + origins.count(Origin.REDIS)
    return CacheCounts(hits=hits, misses=misses, shared=len(origins) - hits - misses)
