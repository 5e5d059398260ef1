"""Packed pairs in, packed scores out: the work of a Scorer between two hops, without BentoML.

Nothing here raises because of one pair: a late or failed pair gets an outcome, its companions their scores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bento_service.errors import DeviceLost
from bento_service.pairs import Outcome, PairScore, TokenPair
from bento_service.scorer.encoders import Encoder
from bento_service.scorer.lanes import Lanes
from bento_service.scorer.passes import Begun, Passes
from bento_service.tally import Tally

# Twice as long a batch is faster by a few percent, and lets a small request beside a big one wait twice as long (ADR 11).
_BATCH_SECONDS = 0.25
_LEAST_LEARNT_PAIRS = 8
_DECAY = 0.9  # of the past in the measured speed, per batch


@dataclass(slots=True, eq=False)
class Running:
    """A batch that has begun. Times of the monotonic clock.

    before: what must end until finish() has something to do; nothing where `answer` is known.
    """

    pairs: list[TokenPair]
    timely: list[int]
    begun_seconds: float
    passes: Begun | None = None
    answer: tuple[list[bytes], Tally] | None = None

    @property
    def before(self) -> list[Future[Any]]:
        """Passes in the lanes, of this batch or of the one whose threads it wants."""
        return self.passes.before if self.passes else []


class ScoringEngine:
    """Scores batches on one device; the next one begins beside the last passes of another, where those are in lanes.

    fingerprint: of the model, 32 bytes, sent with each answer · micro_batch: whether pairs of different requests may share one ·
    max_batch_tokens, lanes: as passes.Passes says.
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
        self.passes = Passes(encoder, device=device, max_batch_tokens=max_batch_tokens, lanes=lanes)
        self._micro_batch = micro_batch
        self._running: list[Running] = []
        self._last_end = 0.0
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
        """How long the oldest batch in hand has been running; 0 without one. Read from another thread."""
        begun = [running.begun_seconds for running in self._running]
        return time.monotonic() - begun[0] if begun else 0.0

    def score(self, blobs: Sequence[bytes]) -> tuple[list[bytes], Tally]:
        """Score packed pairs; one packed score for each, in order. Raises DeviceLost."""
        running = self.begin(blobs)
        return running.answer or self.finish(running)

    def begin(self, blobs: Sequence[bytes], on_room: Callable[[], None] | None = None) -> Running:
        """Begin a batch of packed pairs, and end it where nothing is to be waited for; any other must be finished. Raises DeviceLost.

        on_room: called from another thread as soon as the next batch has room beside this one; perhaps never.
        """
        now = time.monotonic()
        pairs = [TokenPair.unpack(blob) for blob in blobs]
        running = Running(pairs, [number for number, pair in enumerate(pairs) if pair.deadline > now], now)
        self._running.append(running)
        try:
            if running.timely and self._micro_batch:
                running.passes = self.passes.begin([pairs[number] for number in running.timely], on_room)
        except BaseException:
            self._running.remove(running)
            raise
        if not running.before:
            running.answer = self.finish(running)
        return running

    def finish(self, running: Running) -> tuple[list[bytes], Tally]:
        """Wait for what is before it; one packed score for each pair, in order. Raises DeviceLost."""
        try:
            return self._finish(running)
        except torch.AcceleratorError as error:
            # CUDA tells of a failed pass when its outputs are read, if not before.
            raise DeviceLost("the GPU failed; this model worker ends and is started again") from error
        finally:
            self._running.remove(running)

    def _finish(self, running: Running) -> tuple[list[bytes], Tally]:
        pairs, timely, begun = running.pairs, running.timely, running.begun_seconds
        tally = Tally(pairs=len(pairs), late_pairs=len(pairs) - len(timely))
        scores = [PairScore(0.0, Outcome.LATE, self._fingerprint, begun, begun)] * len(pairs)
        if timely:
            raw = self._raw_scores(running, tally)
            ended = time.monotonic()
            for number, value in zip(timely, raw.tolist(), strict=True):
                finite = bool(np.isfinite(value))
                tally.failed_pairs += not finite
                outcome = Outcome.SCORED if finite else Outcome.FAILED
                scores[number] = PairScore(value if finite else 0.0, outcome, self._fingerprint, begun, ended)
            # Time that batches shared is of the one that ends first, so that no second counts twice or not at all.
            tally.forward_seconds = ended - max(self._running[0].begun_seconds, self._last_end)
            self._last_end = ended
            self._learn(len(timely), tally.forward_seconds)
        self.passes.grow_again(tally)
        return [score.pack() for score in scores], tally

    def raw_scores(self, pairs: Sequence[TokenPair], tally: Tally | None = None) -> npt.NDArray[np.float32]:
        """Score pairs together: float32, shape (n_pairs,), as Passes.end() says."""
        return self.passes.end(self.passes.begin(pairs), Tally() if tally is None else tally)

    def warm_up(self, longest: int) -> None:
        """Run the largest micro-batch and a small one, so that memory and kernels are settled before the first caller."""
        count = max(1, self.passes.max_batch_tokens // longest)
        for size, length in ((count, longest), (1, 16), (8, min(128, longest))):
            ids = np.full(length, 100, np.uint32)
            # Rows of unlike ids, or a bi-encoder would compute one row only.
            pairs = [TokenPair(np.append(ids[:-1], np.uint32(200 + number)), None, 1, np.inf, 0) for number in range(size)]
            blobs = [pair.pack() for pair in pairs]
            self.score(blobs)
        self._work = (0.0, 0.0)
        self.score(blobs)

    def _raw_scores(self, running: Running, tally: Tally) -> npt.NDArray[np.float32]:
        if running.passes:
            return self.passes.end(running.passes, tally)
        pairs = [running.pairs[number] for number in running.timely]
        groups: dict[int, list[int]] = {}
        for place, pair in enumerate(pairs):
            groups.setdefault(pair.request, []).append(place)
        raw = np.empty(len(pairs), np.float32)
        for places in groups.values():
            raw[places] = self.raw_scores([pairs[place] for place in places], tally)
        return raw

    def _learn(self, pairs: int, seconds: float) -> None:
        # A few pairs alone say little of how fast many are, and a quiet hour brings many such batches.
        if self._work[1] and pairs < min(_LEAST_LEARNT_PAIRS, self.batch_pairs):
            return
        self._work = (_DECAY * self._work[0] + pairs, _DECAY * self._work[1] + seconds)
