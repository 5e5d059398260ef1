"""Attention among packed sequences: each sees itself alone, whatever its neighbours, its length or the size of its logits."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch.nn.attention import varlen

from bento_service.scorer import attention
from bento_service.scorer.attention import Packing, attend

CPU = torch.device("cpu")
HEADS, WIDTH = 4, 8
HIDDEN = HEADS * WIDTH
LENGTHS = [1, 2, 5, 15, 16, 17, 17, 30, 32, 33, 70]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.03}


def _states(lengths: Sequence[int], dtype: torch.dtype, *, size: float = 1.0, seed: int = 1) -> list[torch.Tensor]:
    """Queries, keys and values of all sequences: shape (n_tokens, hidden) each."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(3, sum(lengths), HIDDEN, generator=generator)
    states[:2] *= size
    return list(states.to(dtype))


def _reference(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """Softmax over each sequence's own keys, in float64, written out."""
    parts = []
    for q, k, v in zip(*(part.double().split(list(lengths)) for part in (queries, keys, values)), strict=True):
        heads = [part.view(-1, HEADS, WIDTH).transpose(0, 1) for part in (q, k, v)]
        weights = torch.softmax(heads[0] @ heads[1].transpose(1, 2) / WIDTH**0.5, dim=-1)
        parts.append((weights @ heads[2]).transpose(0, 1).reshape(-1, HIDDEN))
    return torch.cat(parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("descending", [False, True])
def test_each_sequence_attends_to_itself_alone(dtype: torch.dtype, *, descending: bool) -> None:
    """Of any length, alone in its rectangle or not, in either order."""
    lengths = sorted(LENGTHS, reverse=descending)
    states = _states(lengths, dtype)
    found = attend(*states, Packing(lengths, device=CPU, dtype=dtype), HEADS)
    assert found.shape == states[0].shape
    assert float((found.double() - _reference(*states, lengths)).abs().max()) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_only_first_tokens_may_ask(dtype: torch.dtype) -> None:
    """Their answers are those that they get among all."""
    queries, keys, values = _states(LENGTHS, dtype)
    packing = Packing(LENGTHS, device=CPU, dtype=dtype)
    found = attend(queries[packing.starts], keys, values, packing, HEADS)
    wanted = _reference(queries, keys, values, LENGTHS)[packing.starts]
    assert float((found.double() - wanted).abs().max()) < TOLERANCE[dtype]


def _varlen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, asking: torch.Tensor, asked: torch.Tensor, most_q: int, most_k: int
) -> torch.Tensor:
    """Do on a CPU what torch's varlen_attn does on a GPU, whose signature this is: q, k, v of shape (n_tokens, n_heads, width)."""
    assert asking.dtype == asked.dtype == torch.int32
    assert (int(asking.diff().max()), int(asked.diff().max())) == (most_q, most_k)
    parts = []
    for (q_begin, q_end), (begin, end) in zip(pairwise(asking.tolist()), pairwise(asked.tolist()), strict=True):
        each = (q[q_begin:q_end], k[begin:end], v[begin:end])
        parts.append(torch.nn.functional.scaled_dot_product_attention(*(part.transpose(0, 1)[None] for part in each))[0])
    return torch.cat([part.transpose(0, 1) for part in parts])


@pytest.mark.parametrize("lengths", [LENGTHS, [1, 1, 1], [7]], ids=str)
@pytest.mark.parametrize("only_first", [False, True])
def test_a_gpu_is_told_where_the_sequences_lie(monkeypatch: pytest.MonkeyPatch, lengths: list[int], *, only_first: bool) -> None:
    """The way through its kernel, with one that runs here in its place."""
    monkeypatch.setattr(varlen, "varlen_attn", _varlen)
    queries, keys, values = _states(lengths, torch.float32)
    packing = Packing(lengths, device=CPU, dtype=torch.float32)
    wanted = _reference(queries, keys, values, lengths)
    if only_first:
        queries, wanted = queries[packing.starts], wanted[packing.starts]
    alone = only_first or max(lengths) == 1
    found = attention._attend_on_gpu(queries, keys, values, packing, HEADS, alone=alone)
    assert float((found.double() - wanted).abs().max()) < TOLERANCE[torch.float32]


def test_the_kernel_of_a_gpu_is_called_as_it_wants_to_be() -> None:
    """Its first seven parameters, by torch's own signature."""
    names = list(inspect.signature(varlen.varlen_attn).parameters)[:7]
    assert names == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]


def test_sequences_of_one_token_give_their_values() -> None:
    """There is nothing else to look at."""
    queries, keys, values = _states([1, 1, 1], torch.bfloat16)
    found = attend(queries, keys, values, Packing([1, 1, 1], device=CPU, dtype=torch.bfloat16), HEADS)
    assert torch.allclose(found, values, rtol=0.01)


@pytest.mark.parametrize("size", [5.0, 30.0, 100.0])
def test_large_logits_are_no_trouble(size: float) -> None:
    """Beyond what an exponential holds the usual way is taken; the weights are then all but one-hot."""
    states = _states(LENGTHS, torch.bfloat16, size=size)
    found = attend(*states, Packing(LENGTHS, device=CPU, dtype=torch.bfloat16), HEADS)
    assert torch.isfinite(found).all()
    off = (found.double() - _reference(*states, LENGTHS)).abs()
    assert float(off.mean()) < 0.02


def test_a_neighbour_with_large_logits_changes_nothing() -> None:
    """Each sequence takes the way that its own logits need, to the last bit."""
    lengths = [17, 17, 18]
    queries, keys, values = _states(lengths, torch.bfloat16)
    packing = Packing(lengths, device=CPU, dtype=torch.bfloat16)
    calm = attend(queries, keys, values, packing, HEADS)
    queries[17:34] *= 300
    wild = attend(queries, keys, values, packing, HEADS)
    assert torch.equal(calm[:17], wild[:17])
    assert torch.equal(calm[34:], wild[34:])
    assert not torch.equal(calm[17:34], wild[17:34])


def test_sequences_of_nearly_one_length_share_a_rectangle() -> None:
    """In bf16; in float32 only those of exactly one length do."""
    lengths = [17, 20, 32, 33, 33]
    assert [box.count for box in Packing(lengths, device=CPU, dtype=torch.bfloat16).rectangles] == [3, 2]
    assert [box.count for box in Packing(lengths, device=CPU, dtype=torch.float32).rectangles] == [1, 1, 1, 2]


def test_what_does_not_fit_into_memory_at_once_is_done_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """By sequences, then by heads, to the last bit the same."""
    states = _states(LENGTHS, torch.bfloat16)
    packing = Packing(LENGTHS, device=CPU, dtype=torch.bfloat16)
    at_once = attend(*states, packing, HEADS)
    monkeypatch.setattr(attention, "_MOST_LOGITS", 300)
    assert torch.equal(attend(*states, packing, HEADS), at_once)
