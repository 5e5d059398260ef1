"""Packed pairs in, packed scores out: the work of a Scorer between two hops, without BentoML.

Nothing here raises because of one pair: a late or failed pair gets an outcome, its companions their scores.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from bento_service.errors import DeviceLost
from bento_service.pairs import Outcome, PairScore, TokenPair
from bento_service.scorer.batching import plan, plan_packed
from bento_service.scorer.encoders import Encoder
from bento_service.scorer.lanes import Lanes
from bento_service.scorer.row import Row
from bento_service.tally import Tally

logger = logging.getLogger("bentoml.reranker")

# What one more forward pass costs, in tokens, measured for MiniLM-L6: on 2 cores 3 ms in bf16 at 23,000 tokens/s and
# 5 ms in fp32 at 7,000; on a GPU a pass is mostly launches.
OVERHEAD_TOKENS = {"cpu": 48, "cuda": 2048, "mps": 512}
MAX_BATCH_TOKENS = {"cpu": 4096, "cuda": 65536, "mps": 16384}
BATCHES_TO_GROW = 200
# Twice as long a batch is faster by a few percent, and lets a small request beside a big one wait twice as long (ADR 11).
_BATCH_SECONDS = 0.25
_MEMORY_SIGNS = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
_LEAST_LEARNT_PAIRS = 8
# So that a lane that loses its core for a while leaves work to the others, and each pass is worth its start (ADR 12).
_PARTS_PER_LANE = 2
_LEAST_PART_TOKENS = 256
_DECAY = 0.9  # of the past in the measured speed, per batch


class ScoringEngine:
    """Scores batches on one device, one at a time.

    fingerprint: of the model, 32 bytes, sent with each answer · max_batch_tokens: of the forward passes that run at once, padding included ·
    micro_batch: whether pairs of different requests may share one · lanes: for packed passes side by side, None for one after the other.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        device: torch.device,
        fingerprint: bytes = bytes(32),
        max_batch_tokens: int | None = None,
        micro_batch: bool = True,
        lanes: Lanes | None = None,
    ) -> None:
        self._fingerprint = fingerprint
        self._encoder = encoder
        self._device = device
        self._overhead_tokens = OVERHEAD_TOKENS[device.type]
        self._micro_batch = micro_batch
        self._lanes = lanes
        self._asked_batch_tokens = max_batch_tokens or MAX_BATCH_TOKENS[device.type]
        self.max_batch_tokens = self._asked_batch_tokens
        self._shrinking = threading.Lock()
        self._good_batches = 0
        self._begun: float | None = None
        self._work = (0.0, 0.0)  # pairs and seconds, so that a batch counts by its size

    @property
    def pairs_per_second(self) -> float:
        """The measured speed; 0 before the first batch."""
        pairs, seconds = self._work
        return pairs / seconds if seconds else 0.0

    @property
    def batch_pairs(self) -> int:
        """Pairs that take about a quarter of a second at the measured speed."""
        return max(1, round(self.pairs_per_second * _BATCH_SECONDS))

    @property
    def busy_seconds(self) -> float:
        """How long the batch in hand has been running; 0 without one. Read from another thread."""
        begun = self._begun
        return time.monotonic() - begun if begun else 0.0

    def score(self, blobs: Sequence[bytes]) -> tuple[list[bytes], Tally]:
        """Score packed pairs; one packed score for each, in order. Raises DeviceLost."""
        self._begun = time.monotonic()
        try:
            return self._score([TokenPair.unpack(blob) for blob in blobs], self._begun)
        except torch.AcceleratorError as error:
            # CUDA tells of a failed pass when its outputs are read, if not before.
            raise DeviceLost("the GPU failed; this model worker ends and is started again") from error
        finally:
            self._begun = None

    def _score(self, pairs: Sequence[TokenPair], now: float) -> tuple[list[bytes], Tally]:
        tally = Tally(pairs=len(pairs))
        timely = [number for number, pair in enumerate(pairs) if pair.deadline > now]
        tally.late_pairs = len(pairs) - len(timely)
        scores = [PairScore(0.0, Outcome.LATE, self._fingerprint, now, now)] * len(pairs)
        if timely:
            raw = np.empty(len(timely), np.float32)
            for places in self._groups([pairs[number] for number in timely]):
                raw[places] = self.raw_scores([pairs[timely[place]] for place in places], tally)
            ended = time.monotonic()
            for number, value in zip(timely, raw.tolist(), strict=True):
                finite = bool(np.isfinite(value))
                tally.failed_pairs += not finite
                outcome = Outcome.SCORED if finite else Outcome.FAILED
                scores[number] = PairScore(value if finite else 0.0, outcome, self._fingerprint, now, ended)
            self._learn(len(timely), ended - now)
            tally.forward_seconds = ended - now
        self._grow_again(tally)
        return [score.pack() for score in scores], tally

    def raw_scores(self, pairs: Sequence[TokenPair], tally: Tally | None = None) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        """Score pairs together: float32, shape (n_pairs,), logits or cosines in order; NaN where one pair needs too much memory with nothing beside it."""
        tally = Tally() if tally is None else tally
        with torch.inference_mode():
            rows, needs = self._encoder.rows(pairs)
            places: list[int] = []
            parts: list[torch.Tensor] = []
            for done, output in self._passes(rows, tally):
                places += done
                parts.append(output)
            width = next((part.shape[1] for part in parts if part.shape[1]), 1)
            parts = [part if part.shape[1] else torch.full((len(part), width), torch.nan, device=self._device) for part in parts]
            outputs = torch.cat(parts)[torch.tensor(np.argsort(places), device=self._device)]
            return self._encoder.combine(outputs, needs).cpu().numpy()

    def warm_up(self, longest: int) -> None:
        """Run the largest micro-batch and a small one, so that memory and kernels are settled before the first caller."""
        count = max(1, self.max_batch_tokens // longest)
        for size, length in ((count, longest), (1, 16), (8, min(128, longest))):
            ids = np.full(length, 100, np.uint32)
            # Rows of unlike ids, or a bi-encoder would compute one row only.
            pairs = [TokenPair(np.append(ids[:-1], np.uint32(200 + number)), None, 1, np.inf, 0) for number in range(size)]
            blobs = [pair.pack() for pair in pairs]
            self.score(blobs)
        self._work = (0.0, 0.0)
        self.score(blobs)

    def _passes(self, rows: Sequence[Row], tally: Tally) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Run forward passes over all rows, side by side where that is faster: places, and their outputs."""
        lengths = [len(row.ids) for row in rows]
        lanes, parts = self._lanes, self._parts(lengths)
        if lanes is None or parts == 1:
            for batch in self._plan(lengths):
                yield from self._forward(batch, rows, tally)
            return

        def run(batch: list[int]) -> tuple[list[tuple[list[int], torch.Tensor]], Tally]:
            own = Tally()
            with torch.inference_mode():  # which is each thread's own
                return list(self._forward(batch, rows, own, at_once=lanes.count)), own

        share = self.max_batch_tokens // lanes.count
        planned = plan_packed(lengths, max_tokens=share, least=parts)
        if over := len(planned) % lanes.count:
            # As many for each lane: of five parts on two lanes one lane would wait for the last.
            planned = plan_packed(lengths, max_tokens=share, least=len(planned) + lanes.count - over)
        for done, own in lanes.run(run, planned):
            tally.add(own)
            for places, output in done:
                if own.memory_retries and not output.shape[1]:
                    yield from self._forward(places, rows, tally)  # which has all the memory to itself now
                else:
                    yield places, output

    def _parts(self, lengths: Sequence[int]) -> int:
        """In how many parts rows are worth being computed side by side; 1 if they are not."""
        if self._lanes is None or not self._encoder.packs or not lengths:
            return 1
        count, tokens, longest = self._lanes.count, sum(lengths), max(lengths)
        # One lane would be waited for, or all of them together would take more memory than they may.
        if count * longest > tokens or count * max(_LEAST_PART_TOKENS, longest) > self.max_batch_tokens:
            return 1
        return count * min(_PARTS_PER_LANE, tokens // (count * _LEAST_PART_TOKENS)) or 1

    def _plan(self, lengths: Sequence[int]) -> list[list[int]]:
        if self._encoder.packs:
            return plan_packed(lengths, max_tokens=self.max_batch_tokens)
        return plan(lengths, max_tokens=self.max_batch_tokens, overhead_tokens=self._overhead_tokens)

    def _tokens(self, rows: Sequence[Row]) -> int:
        """How many tokens a forward pass of these rows computes."""
        lengths = [len(row.ids) for row in rows]
        return sum(lengths) if self._encoder.packs else len(rows) * max(lengths)

    def _groups(self, pairs: Sequence[TokenPair]) -> list[list[int]]:
        if self._micro_batch:
            return [list(range(len(pairs)))]
        groups: dict[int, list[int]] = {}
        for place, pair in enumerate(pairs):
            groups.setdefault(pair.request, []).append(place)
        return list(groups.values())

    def _forward(
        self, batch: list[int], rows: Sequence[Row], tally: Tally, *, at_once: int = 1
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """One forward pass, or several smaller ones where it fails; a zero-width output marks a row that failed alone.

        at_once: how many such passes share the memory.
        """
        chosen = [rows[place] for place in batch]
        tokens = self._tokens(chosen)
        try:
            output = self._encoder.forward(chosen)
        except Exception as error:
            memory = _out_of_memory(error)
            if isinstance(error, torch.AcceleratorError) and not memory:
                raise
            if not memory and len(batch) == 1:
                logger.exception("a pair could not be scored")
        else:
            tally.forwards += 1
            tally.real_tokens += sum(len(row.ids) for row in chosen)
            tally.computed_tokens += tokens
            yield batch, output
            return
        # Outside the except block: the traceback there still holds the tensors of the failed pass.
        if memory:
            tally.memory_retries += 1
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
        if len(batch) == 1:
            yield batch, torch.empty((1, 0), device=self._device)
            return
        if memory:
            longest = max(len(row.ids) for row in chosen)
            with self._shrinking:
                self.max_batch_tokens = min(self.max_batch_tokens, max(longest, tokens * at_once // 2))
        half = len(batch) // 2
        yield from self._forward(batch[:half], rows, tally, at_once=at_once)
        yield from self._forward(batch[half:], rows, tally, at_once=at_once)

    def _grow_again(self, tally: Tally) -> None:
        """Double a budget that memory once halved, after a while without trouble: the cause may have passed."""
        self._good_batches = 0 if tally.memory_retries else self._good_batches + 1
        if self._good_batches >= BATCHES_TO_GROW and self.max_batch_tokens < self._asked_batch_tokens:
            self.max_batch_tokens = min(self._asked_batch_tokens, 2 * self.max_batch_tokens)
            self._good_batches = 0

    def _learn(self, pairs: int, seconds: float) -> None:
        # A few pairs alone say little of how fast many are, and a quiet hour brings many such batches.
        if self._work[1] and pairs < min(_LEAST_LEARNT_PAIRS, self.batch_pairs):
            return
        self._work = (_DECAY * self._work[0] + pairs, _DECAY * self._work[1] + seconds)


def _out_of_memory(error: BaseException) -> bool:
    """CUDA raises a class of its own; other allocators a RuntimeError that only its text tells apart."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(sign in text for sign in _MEMORY_SIGNS)
