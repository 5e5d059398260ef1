"""The forward passes over some pairs: planned, side by side where lanes have room, in halves where memory runs out.

Nothing here raises because of one pair: NaN is the score of one that fails alone.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from bento_service.pairs import TokenPair
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
_MEMORY_SIGNS = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
# So that a lane that loses its core for a while leaves work to the others, and each pass is worth its start (ADR 12).
_PARTS_PER_LANE = 2
_LEAST_PART_TOKENS = 256
_Outputs: TypeAlias = list[tuple[list[int], torch.Tensor]]  # places of rows, and what came of them


@dataclass(slots=True)
class Begun:
    """Pairs whose passes have begun, or will.

    aside: passes in the lanes; without any, all are still to be run, on all threads · before: what must end until end() has something to do.
    """

    rows: list[Row]
    needs: npt.NDArray[np.int64]
    aside: list[Future[tuple[_Outputs, Tally]]]
    before: list[Future[Any]]


class Passes:
    """Runs a model on one device.

    max_batch_tokens: of the passes that run at once, padding included · lanes: for packed passes side by side, None for one after the other.
    """

    def __init__(
        self, encoder: Encoder, *, device: torch.device, max_batch_tokens: int | None = None, lanes: Lanes | None = None
    ) -> None:
        self.encoder = encoder
        self._device = device
        self._overhead_tokens = OVERHEAD_TOKENS[device.type]
        self._lanes = lanes
        self._asked_batch_tokens = max_batch_tokens or MAX_BATCH_TOKENS[device.type]
        self.max_batch_tokens = self._asked_batch_tokens
        self._shrinking = threading.Lock()
        self._good_batches = 0

    def begin(self, pairs: Sequence[TokenPair], on_room: Callable[[], None] | None = None) -> Begun:
        """Begin in the lanes, behind what is there, if that is faster. on_room: as Lanes.begin() says; not called without lanes."""
        with torch.inference_mode():
            rows, needs = self.encoder.rows(pairs)
        aside = self._begin_aside(rows, on_room)
        return Begun(rows, needs, aside, before=list(aside) or self._under_way())

    def end(self, begun: Begun, tally: Tally) -> npt.NDArray[np.float32]:
        """Wait for the raw scores: float32, shape (n_pairs,), logits or cosines in order; NaN where one pair needs too much memory with nothing beside it."""
        places: list[int] = []
        parts: list[torch.Tensor] = []
        with torch.inference_mode():
            for done, output in self._outputs(begun, tally):
                places += done
                parts.append(output)
            width = next((part.shape[1] for part in parts if part.shape[1]), 1)
            parts = [part if part.shape[1] else torch.full((len(part), width), torch.nan, device=self._device) for part in parts]
            outputs = torch.cat(parts)[torch.tensor(np.argsort(places), device=self._device)]
            scores: npt.NDArray[np.float32] = self.encoder.combine(outputs, begun.needs).cpu().numpy()
            return scores

    def grow_again(self, tally: Tally) -> None:
        """Double a budget that memory once halved, after a while without trouble: the cause may have passed. Called after each batch."""
        self._good_batches = 0 if tally.memory_retries else self._good_batches + 1
        if self._good_batches >= BATCHES_TO_GROW and self.max_batch_tokens < self._asked_batch_tokens:
            self.max_batch_tokens = min(self._asked_batch_tokens, 2 * self.max_batch_tokens)
            self._good_batches = 0

    def _under_way(self) -> list[Future[Any]]:
        return self._lanes.under_way if self._lanes else []

    def _begin_aside(self, rows: Sequence[Row], on_room: Callable[[], None] | None) -> list[Future[tuple[_Outputs, Tally]]]:
        lengths = [len(row.ids) for row in rows]
        lanes, parts = self._lanes, self._parts(lengths)
        if lanes is None or not parts:
            return []

        def run(batch: list[int]) -> tuple[_Outputs, Tally]:
            own = Tally()
            with torch.inference_mode():  # which is each thread's own
                return list(self._forward(batch, rows, own, at_once=lanes.count)), own

        share = self.max_batch_tokens // lanes.count
        planned = plan_packed(lengths, max_tokens=share, least=parts)
        if over := len(planned) % lanes.count if parts > 1 else 0:
            # As many for each lane: of five parts on two lanes one lane would wait for the last.
            planned = plan_packed(lengths, max_tokens=share, least=len(planned) + lanes.count - over)
        return lanes.begin(run, planned, on_room)

    def _parts(self, lengths: Sequence[int]) -> int:
        """In how many parts rows are worth being computed in lanes; 0 if they are not."""
        if self._lanes is None or not self.encoder.packs or not lengths:
            return 0
        count, tokens, longest = self._lanes.count, sum(lengths), max(lengths)
        # All of them together would take more memory than they may.
        if count * max(_LEAST_PART_TOKENS, longest) > self.max_batch_tokens:
            return 0
        # One lane would be waited for.
        parts = 0 if count * longest > tokens else count * min(_PARTS_PER_LANE, tokens // (count * _LEAST_PART_TOKENS))
        # Beside the last part of another batch even the smallest work has a lane for itself.
        return parts or int(bool(self._lanes.under_way))

    def _outputs(self, begun: Begun, tally: Tally) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Places of rows, and their outputs."""
        if not begun.aside:
            wait(self._under_way())  # which have a share of the threads and of the memory
            for batch in self._plan([len(row.ids) for row in begun.rows]):
                yield from self._forward(batch, begun.rows, tally)
            return
        wait(begun.aside)  # so that all of them have ended when one has failed
        for part in begun.aside:
            done, own = part.result()
            tally.add(own)
            for places, output in done:
                if own.memory_retries and not output.shape[1]:
                    wait(self._under_way())
                    yield from self._forward(places, begun.rows, tally)  # which has all the memory to itself now
                else:
                    yield places, output

    def _plan(self, lengths: Sequence[int]) -> list[list[int]]:
        if self.encoder.packs:
            return plan_packed(lengths, max_tokens=self.max_batch_tokens)
        return plan(lengths, max_tokens=self.max_batch_tokens, overhead_tokens=self._overhead_tokens)

    def _tokens(self, rows: Sequence[Row]) -> int:
        """How many tokens a forward pass of these rows computes."""
        lengths = [len(row.ids) for row in rows]
        return sum(lengths) if self.encoder.packs else len(rows) * max(lengths)

    def _forward(
        self, batch: list[int], rows: Sequence[Row], tally: Tally, *, at_once: int = 1
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """One forward pass, or several smaller ones where it fails; a zero-width output marks a row that failed alone.

        at_once: how many such passes share the memory.
        """
        chosen = [rows[place] for place in batch]
        tokens = self._tokens(chosen)
        try:
            output = self.encoder.forward(chosen)
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


def _out_of_memory(error: BaseException) -> bool:
    """CUDA raises a class of its own; other allocators a RuntimeError that only its text tells apart."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(sign in text for sign in _MEMORY_SIGNS)
