"""Sequences as micro-batches of near lengths, and outputs back in the caller's order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from tokenizers import Encoding

# input_ids, attention_mask, token_type_ids: int64, shape (n_rows, longest).
MicroBatch = dict[str, torch.Tensor]
# Returns float32, shape (n_rows, width): a logit or a unit vector a row.
Engine = Callable[[MicroBatch], torch.Tensor]


def padded(encodings: Sequence[Encoding]) -> MicroBatch:
    """Lay sequences out as one rectangle; the built-in tokenizer's padding id is 0."""
    longest = max(len(encoding.ids) for encoding in encodings)

    def rectangle(name: str) -> torch.Tensor:
        rows = [getattr(encoding, name) for encoding in encodings]
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows])

    return {"input_ids": rectangle("ids"), "attention_mask": rectangle("attention_mask"), "token_type_ids": rectangle("type_ids")}


def sorted_batches(encodings: Sequence[Encoding], size: int) -> Iterator[tuple[list[int], MicroBatch]]:
    """Micro-batches of near lengths, with the places of their rows."""
    order = sorted(range(len(encodings)), key=lambda place: len(encodings[place].ids))
    for start in range(0, len(order), size):
        places = order[start : start + size]
        yield places, padded([encodings[place] for place in places])


def outputs_of(engine: Engine, encodings: Sequence[Encoding], size: int) -> torch.Tensor:
    """Run all: float32, shape (n, width), in the order given."""
    parts = [(places, engine(batch)) for places, batch in sorted_batches(encodings, size)]
    width = parts[0][1].shape[1]
    outputs = torch.empty(len(encodings), width)
    for places, part in parts:
        outputs[places] = part
    return outputs
