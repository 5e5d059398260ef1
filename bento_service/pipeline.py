"""The whole story of a rerank request.

    query ▶ distinct documents ▶ token ids ▶ scores ▶ ranked results

parse (dialects, schemas) comes before it, the answer's format (dialects) after it.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time

from bento_service.admission import Admission, deadline_passed
from bento_service.errors import DocumentTooLong, UnknownModel
from bento_service.metrics import EntryMetrics
from bento_service.model_info import ModelInfo
from bento_service.ranking import activate, rank
from bento_service.schemas import RerankQuery, RerankResult
from bento_service.tokenizer import PairTokenizer, TokenizedPair


class Pipeline:
    """Answers rerank queries.

    model_name: what answers call the model · strict_model: refuse requests that name another one.
    """

    def __init__(
        self,
        *,
        info: ModelInfo,
        model_name: str,
        tokenizer: PairTokenizer,
        admission: Admission,
        metrics: EntryMetrics,
        strict_model: bool,
    ) -> None:
        self._info = info
        self._model_name = model_name
        self._tokenizer = tokenizer
        self._admission = admission
        self._metrics = metrics
        self._strict_model = strict_model
        # Starts at random, because entry workers share the Scorers and requests must not be taken for one another.
        self._request_numbers = itertools.count(secrets.randbits(60))

    async def rerank(self, query: RerankQuery, *, deadline: float) -> RerankResult:
        """Score every document against the query and rank them.

        deadline: on the clock of time.monotonic(). Cancelling drops the work that is not under way yet.
        Raises RequestError.
        """
        if self._strict_model and query.model not in (None, self._model_name, self._model_name.partition(":")[0]):
            raise UnknownModel(f"this server serves {self._model_name}: ask for that, or leave `model` out", param="model")
        texts = [document.text for document in query.documents]
        distinct = list(dict.fromkeys(texts))
        self._metrics.documents.inc(len(texts))
        self._metrics.duplicate_documents.inc(len(texts) - len(distinct))

        with self._admission.place_for(len(distinct)):
            pairs = dict(zip(distinct, await self._tokenize(query, distinct, deadline), strict=True))
            truncated = self._truncated(query, texts, pairs)
            raw = dict(zip(distinct, await self._score([pairs[text] for text in distinct], deadline), strict=True))

        start = time.perf_counter()
        scores = [raw[text] if query.raw_scores else activate(raw[text], self._info.activation) for text in texts]
        ranked = rank(scores, top_n=query.top_n, score_threshold=query.score_threshold)
        self._observe("rank", start)
        return RerankResult(
            model=query.model or self._model_name,
            ranked=ranked,
            token_count=sum(pairs[text].token_count for text in texts),
            truncated=truncated,
            warnings=["instruction was ignored: this model's template has none"] if query.instruction else [],
        )

    def _truncated(self, query: RerankQuery, texts: list[str], pairs: dict[str, TokenizedPair]) -> list[int]:
        """Find the documents that lost text; an error where the caller forbade it."""
        truncated = [index for index, text in enumerate(texts) if pairs[text].truncated]
        self._metrics.truncated_documents.inc(len(truncated))
        if truncated and not query.truncation:
            raise DocumentTooLong(
                f"document {truncated[0]} does not fit the model's window and truncation is off: shorten it, or allow truncation",
                param="documents",
            )
        return truncated

    async def _tokenize(self, query: RerankQuery, texts: list[str], deadline: float) -> list[TokenizedPair]:
        start = time.perf_counter()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                pairs = await self._tokenizer.encode(
                    query.query,
                    texts,
                    max_tokens_per_doc=query.max_tokens_per_doc,
                    deadline=deadline,
                    request=next(self._request_numbers),
                )
        except TimeoutError:
            raise deadline_passed() from None
        self._observe("tokenize", start)
        return pairs

    async def _score(self, pairs: list[TokenizedPair], deadline: float) -> list[float]:
        start = time.perf_counter()
        scores = await self._admission.score([pair.tokens.pack() for pair in pairs], deadline=deadline)
        self._observe("score", start)
        return scores

    def _observe(self, stage: str, start: float) -> None:
        self._metrics.stage_seconds.labels(stage).observe(time.perf_counter() - start)
