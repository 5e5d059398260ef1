"""The forward pass of BERT and its kin over packed sequences: no padding in the linear layers, and of the last layer only what is asked for.

The weights come from a model that transformers has loaded; architectures that are not listed here run in padded.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch.nn.functional import layer_norm

from bento_service.scorer.attention import Packing, attend
from bento_service.scorer.dense_linear import Gelu
from bento_service.scorer.device import multiplies_bf16
from bento_service.scorer.forward import Pooling, weight_bytes
from bento_service.scorer.int8_linear import Int8FeedForward
from bento_service.scorer.linear import Int8Weights, as_linear, joined
from bento_service.scorer.row import Row

_GELUS: Mapping[str, Gelu] = {"gelu": "none", "gelu_python": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}


@dataclass(frozen=True, slots=True)
class Family:
    """Where an architecture keeps its parts. layers: in the base model · the others: in a layer, in the order they are used in."""

    layers: str
    projections: tuple[str, str, str]
    out: str
    norm: str
    up: str
    down: str
    last_norm: str


_BERT = Family(
    "encoder.layer",
    ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)
_DISTILBERT = Family(
    "transformer.layer",
    ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    "attention.out_lin",
    "sa_layer_norm",
    "ffn.lin1",
    "ffn.lin2",
    "output_layer_norm",
)
FAMILIES: Mapping[str, Family] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "distilbert": _DISTILBERT,
}
_WIDEST_HEAD = 256
_POSITIONS_AFTER_PADDING = {"roberta", "xlm-roberta", "camembert"}


def runs_packed(config: Any, device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether a model can be run packed: its architecture is known, and on a GPU there are kernels for it."""
    known = (
        config.model_type in FAMILIES
        and _activation(config) in _GELUS
        and not getattr(config, "is_decoder", False)
        and getattr(config, "position_embedding_type", None) in (None, "absolute")
    )
    if device.type == "cuda":
        # Flash attention is for 16 bits, for the GPUs that multiply bf16, and for these widths of a head.
        width = config.hidden_size // config.num_attention_heads
        return known and dtype != torch.float32 and multiplies_bf16(device) and width % 8 == 0 and width <= _WIDEST_HEAD
    return known and device.type == "cpu"


def _activation(config: Any) -> str | None:
    """Name the activation between the layers of a feed-forward; DistilBERT calls it otherwise."""
    return getattr(config, "hidden_act", None) or getattr(config, "activation", None)


class PackedForward:
    """As forward.Forward. head: turns each sequence's first hidden state, float32, into logits; without one, `pooling` is applied."""

    packs = True

    def __init__(
        self,
        base: Any,
        config: Any,
        *,
        head: torch.nn.Module | None,
        pooling: Pooling | None,
        dtype: torch.dtype,
    ) -> None:
        family = FAMILIES[config.model_type]
        self._embeddings = _Embeddings(base, config, dtype)
        gelu = _GELUS[str(_activation(config))]
        heads = config.num_attention_heads
        self._only_first = head is not None or pooling == "cls"
        layers = list(attrgetter(family.layers)(base))
        self._layers = [
            _Layer(layer, family, heads=heads, gelu=gelu, dtype=dtype, only_first=self._only_first and layer is layers[-1])
            for layer in layers
        ]
        self._head = head
        self._pooling = pooling
        self._dtype = dtype
        self.weight_bytes = self._embeddings.weight_bytes + sum(layer.weight_bytes for layer in self._layers)
        self.weight_bytes += 0 if head is None else weight_bytes(head)

    def __call__(self, rows: Sequence[Row]) -> torch.Tensor:
        """As Forward."""
        order = np.argsort([len(row.ids) for row in rows], kind="stable")
        ordered = [rows[place] for place in order]
        packing = Packing([len(row.ids) for row in ordered], device=self._embeddings.device, dtype=self._dtype)
        hidden = self._embeddings(ordered)
        for layer in self._layers:
            hidden = layer(hidden, packing)
        hidden = hidden.float()
        pooled = hidden if self._only_first else _pool(hidden, packing, self._pooling)
        outputs = pooled if self._head is None else self._head(pooled)
        return outputs[torch.from_numpy(np.argsort(order)).to(outputs.device)]


class _Embeddings:
    def __init__(self, base: Any, config: Any, dtype: torch.dtype) -> None:
        parts = base.embeddings
        types = getattr(parts, "token_type_embeddings", None)
        self._words = parts.word_embeddings.weight.detach()
        self._places = parts.position_embeddings.weight.detach()
        self._types = None if types is None else types.weight.detach()
        self._norm = _Norm(parts.LayerNorm, dtype)
        project = getattr(base, "embeddings_project", None)
        self._project = None if project is None else as_linear(project, dtype)
        self._pad_id = config.pad_token_id if config.model_type in _POSITIONS_AFTER_PADDING else None
        self._dtype = dtype
        tables = [table for table in (self._words, self._places, self._types) if table is not None]
        self.weight_bytes = sum(table.nbytes for table in tables) + self._norm.weight_bytes
        self.weight_bytes += self._project.weight_bytes if self._project else 0

    @property
    def device(self) -> torch.device:
        """Where the tables lie."""
        device: torch.device = self._words.device
        return device

    def __call__(self, rows: Sequence[Row]) -> torch.Tensor:
        """Hidden states before the first layer: shape (n_tokens, hidden)."""
        hidden = self._look_up(self._words, np.concatenate([row.ids for row in rows]))
        if self._types is not None:
            if all(row.type_ids is None for row in rows):
                hidden += self._types[0].to(self._dtype)
            else:
                hidden += self._look_up(self._types, np.concatenate([_types_of(row) for row in rows]))
        hidden += self._look_up(self._places, np.concatenate([self._places_of(row) for row in rows]))
        hidden = self._norm(hidden)
        return hidden if self._project is None else self._project(hidden)

    def _look_up(self, table: torch.Tensor, index: np.ndarray) -> torch.Tensor:
        return table.index_select(0, torch.from_numpy(index.astype(np.int64)).to(table.device)).to(self._dtype)

    def _places_of(self, row: Row) -> np.ndarray:
        if self._pad_id is None:
            return np.arange(len(row.ids))
        # RoBERTa counts from behind the padding token's number, and gives that number to a padding token in a text.
        real = row.ids != self._pad_id
        places: np.ndarray = np.cumsum(real) * real + self._pad_id
        return places


def _types_of(row: Row) -> np.ndarray:
    return np.zeros(len(row.ids), np.uint8) if row.type_ids is None else row.type_ids


class _Norm:
    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        self._weight = module.weight.detach().to(dtype)
        self._bias = module.bias.detach().to(dtype)
        self._epsilon = module.eps
        self.weight_bytes = self._weight.nbytes + self._bias.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x, self._weight.shape, self._weight, self._bias, self._epsilon)


class _Layer:
    """One encoder layer; hidden states have shape (n_tokens, hidden). only_first: the last layer, of whose output the first tokens will do."""

    def __init__(self, layer: Any, family: Family, *, heads: int, gelu: Gelu, dtype: torch.dtype, only_first: bool) -> None:
        query, key, value = (attrgetter(name)(layer) for name in family.projections)
        self._query = as_linear(query, dtype) if only_first else None
        self._project = joined([key, value] if only_first else [query, key, value], dtype)
        self._out = as_linear(attrgetter(family.out)(layer), dtype)
        self._feed_forward = _feed_forward(attrgetter(family.up)(layer), attrgetter(family.down)(layer), dtype)
        self._norm, self._last_norm = (_Norm(attrgetter(name)(layer), dtype) for name in (family.norm, family.last_norm))
        self._heads = heads
        self._gelu = gelu
        parts = (self._query, self._project, self._out, self._feed_forward, self._norm, self._last_norm)
        self.weight_bytes = sum(part.weight_bytes for part in parts if part is not None)

    def __call__(self, hidden: torch.Tensor, packing: Packing) -> torch.Tensor:
        """Return the new hidden states, or only those of each sequence's first token: shape (n_sequences, hidden)."""
        projected = self._project(hidden)
        if self._query is None:
            queries, keys, values = projected.chunk(3, dim=1)
        else:
            keys, values = projected.chunk(2, dim=1)
            hidden = hidden.index_select(0, packing.starts)
            queries = self._query(hidden)
        found = attend(queries, keys, values, packing, self._heads)
        hidden = self._norm(self._out(found).add_(hidden))
        return self._last_norm(self._feed_forward(hidden, self._gelu).add_(hidden))


class _DenseFeedForward:
    def __init__(self, up: Any, down: Any, dtype: torch.dtype) -> None:
        self._up, self._down = as_linear(up, dtype), as_linear(down, dtype)
        self.weight_bytes = self._up.weight_bytes + self._down.weight_bytes

    def __call__(self, x: torch.Tensor, gelu: Gelu) -> torch.Tensor:
        y: torch.Tensor = self._down(self._up(x, gelu))
        return y


def _feed_forward(up: Any, down: Any, dtype: torch.dtype) -> Int8FeedForward | _DenseFeedForward:
    if isinstance(up, Int8Weights) and isinstance(down, Int8Weights) and len(down.parts["factor"]) == 1:
        return Int8FeedForward(up.parts, down.parts, dtype)
    return _DenseFeedForward(up, down, dtype)


def _pool(hidden: torch.Tensor, packing: Packing, pooling: Pooling | None) -> torch.Tensor:
    if pooling == "max":
        return torch.stack([tokens.amax(0) for tokens in torch.split(hidden, packing.lengths.tolist())])
    lengths = packing.offsets.diff()
    owners = torch.repeat_interleave(torch.arange(len(lengths), device=hidden.device), lengths, output_size=len(hidden))
    # A fifth of the time of a mean for each sequence, which on a GPU would be a kernel each.
    return hidden.new_zeros(len(lengths), hidden.shape[1]).index_add_(0, owners, hidden) / lengths[:, None]
