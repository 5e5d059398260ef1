"""Yes/no rerankers: a causal model reads a prompt with query and document; its last hidden state says how much it means yes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import DynamicCache

from bento_service.model_info import ModelInfo
from bento_service.pairs import TokenPair
from bento_service.scorer.forward import weight_bytes
from bento_service.scorer.prefixes import Prefix, Prefixes
from bento_service.scorer.row import Row

# Prefixes are shared in these, and on CPUs alone, where it was measured; others compute every pair whole.
_SHARING = {"qwen2", "qwen3", "llama"}
# load/bench_prefixes.py on one busy core, Qwen3 with 6 layers of 512, prefixes of 100 tokens, documents of 80 to 120; time whole over time
# shared in fp32 and bf16: 1 pair 0.97, 0.87; 2 pairs 1.4, 1.15; 4 pairs 1.7, 1.4; 20 pairs 1.95, 1.8; 8 queries of 4 pairs 1.7, 1.6.
# One pair a call: 2 pairs 0.9, 0.9; 4 pairs 1.3, 1.15; 20 pairs 1.7, 1.1. So 100 tokens saved are worth a pass, and a lone pair is not.
_PASS_TOKENS = 64
# In fp32 235 MB for Qwen3-Reranker-0.6B, which has 229 KB of keys and values for each token; some ten queries.
_KEPT_TOKENS = 1024
# Keys of all rows that one layer's attention sees at once, prefixes repeated for each row: bounds the memory of a pass.
_MOST_KEYS = 16384


class YesNo:
    """A causal model without its output matrix: of that, only what tells yes from no.

    Rows are padded on the right, where no token before looks in a causal model: no mask is needed, and positions begin at 0 as they do alone.
    (The models' own code pads on the left, to find each row's last token in one place; here it is looked up.)
    head: float32, shape (hidden size,); its product with the last token's hidden state is the raw score.
    """

    packs = False

    def __init__(self, model: Any, head: torch.Tensor, *, device: torch.device, prefixes: Prefixes | None) -> None:
        self._model = model
        self._head = head
        self._device = device
        self._prefixes = prefixes
        self.weight_bytes = weight_bytes(model) + head.nbytes

    def rows(self, pairs: Sequence[TokenPair]) -> tuple[list[Row], npt.NDArray[np.int64]]:
        """Every pair is a row, without what is computed once for its whole query."""
        needs = np.arange(len(pairs))[:, None]
        if self._prefixes is None:
            return [Row(pair.ids, None) for pair in pairs], needs
        # The last token is computed in any case.
        shared = self._prefixes.choose([pair.ids[: min(pair.split, len(pair.ids) - 1)] for pair in pairs])
        return [
            Row(pair.ids[len(prefix.ids) if prefix else 0 :], None, prefix) for pair, prefix in zip(pairs, shared, strict=True)
        ], needs

    def forward(self, rows: Sequence[Row]) -> torch.Tensor:
        """Raw scores: float32, shape (n_rows, 1)."""
        scores = torch.empty((len(rows), 1), device=self._device)
        whole = [place for place, row in enumerate(rows) if row.prefix is None]
        behind = [place for place, row in enumerate(rows) if row.prefix is not None]
        if whole:
            scores[whole, 0] = self._whole([rows[place] for place in whole])
        if behind:
            self._compute_prefixes([row.prefix for row in rows if row.prefix is not None])
            keys = max(len(row.ids) for row in rows) + max(len(row.prefix.ids) for row in rows if row.prefix)
            step = max(1, _MOST_KEYS // keys)
            for start in range(0, len(behind), step):
                places = behind[start : start + step]
                scores[places, 0] = self._behind([rows[place] for place in places])
        return scores

    def combine(self, outputs: torch.Tensor, needs: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return the scores as they are."""
        return outputs[torch.from_numpy(needs[:, 0]).to(outputs.device), 0]

    def _whole(self, rows: Sequence[Row]) -> torch.Tensor:
        hidden = self._model(input_ids=self._padded([row.ids for row in rows]), use_cache=False).last_hidden_state
        return self._scored(hidden, rows)

    def _behind(self, rows: Sequence[Row]) -> torch.Tensor:
        """Score rows whose prefixes are computed: these rows' tokens see them as if they stood before."""
        distinct = list({id(row.prefix): row.prefix for row in rows if row.prefix}.values())
        order = {id(prefix): number for number, prefix in enumerate(distinct)}
        which = torch.tensor([order[id(row.prefix)] for row in rows], device=self._device)
        sizes = torch.tensor([len(prefix.ids) for prefix in distinct], device=self._device)[which]
        ids = self._padded([row.ids for row in rows])
        past = _Shared(distinct, which)
        count = ids.shape[1]
        before = torch.arange(past.longest, device=self._device) < sizes[:, None]
        causal = torch.ones((count, count), dtype=torch.bool, device=self._device).tril()
        mask = torch.cat([before[:, None].expand(-1, count, -1), causal.expand(len(rows), -1, -1)], dim=2)
        hidden = self._model(
            input_ids=ids,
            position_ids=sizes[:, None] + torch.arange(count, device=self._device),
            attention_mask=mask[:, None],
            past_key_values=past,
            use_cache=False,
        ).last_hidden_state
        return self._scored(hidden, rows)

    def _compute_prefixes(self, prefixes: Sequence[Prefix]) -> None:
        """Compute those that are not yet, all in one pass."""
        missing = list({id(prefix): prefix for prefix in prefixes if prefix.layers is None}.values())
        if not missing:
            return
        computed = self._model(input_ids=self._padded([prefix.ids for prefix in missing]), use_cache=True).past_key_values
        for number, prefix in enumerate(missing):
            size = len(prefix.ids)
            # Copies, or each would keep the whole pass in memory.
            prefix.layers = [
                (layer.keys[number, :, :size].clone(), layer.values[number, :, :size].clone()) for layer in computed.layers
            ]

    def _scored(self, hidden: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
        last = torch.tensor([len(row.ids) - 1 for row in rows], device=self._device)
        return hidden[torch.arange(len(rows), device=self._device), last].float() @ self._head

    def _padded(self, sequences: Sequence[npt.NDArray[np.uint32]]) -> torch.Tensor:
        """Lay sequences out as one rectangle, int64; what they are padded with is never looked at."""
        ids = np.zeros((len(sequences), max(map(len, sequences))), dtype=np.int64)
        for number, sequence in enumerate(sequences):
            ids[number, : len(sequence)] = sequence
        return torch.from_numpy(ids).to(self._device)


class _Shared(DynamicCache):  # type: ignore[misc]  # transformers has no types
    """Puts each row's prefix before its own keys and values, layer by layer, and keeps nothing of either."""

    def __init__(self, prefixes: Sequence[Prefix], which: torch.Tensor) -> None:
        super().__init__()
        self._prefixes = prefixes
        self._which = which
        self.longest = max(len(prefix.ids) for prefix in prefixes)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values that this layer's attention sees: shape (n_rows, n_heads, prefix + own tokens, head size)."""
        return (
            torch.cat([self._before(layer_idx, 0), key_states], dim=2),
            torch.cat([self._before(layer_idx, 1), value_states], dim=2),
        )

    def _before(self, layer: int, part: int) -> torch.Tensor:
        states = [prefix.layers[layer][part] for prefix in self._prefixes if prefix.layers]
        if len(states) == 1:
            return states[0].expand(len(self._which), -1, -1, -1)
        padded = [torch.nn.functional.pad(state, (0, 0, 0, self.longest - state.shape[1])) for state in states]
        return torch.stack(padded)[self._which]


def make_yes_no(loaded: Any, info: ModelInfo, device: torch.device) -> YesNo:
    """Make the encoder of a language model, or of one with a head of one label; the output matrix is dropped but for its answers."""
    if info.answers:
        # The logit of yes less that of no, whose sigmoid is the softmax over the two.
        yes, *no = loaded.get_output_embeddings().weight.detach()[info.answers].float()
        head = yes - sum(no)
    else:
        head = loaded.score.weight.detach()[0].float()
    model = loaded.base_model
    full = set(getattr(model.config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
    plain = full and model.config._attn_implementation == "sdpa"  # noqa: SLF001  transformers tells it nowhere else
    shares = plain and device.type == "cpu" and model.config.model_type in _SHARING
    prefixes = Prefixes(max_tokens=_KEPT_TOKENS, pass_tokens=_PASS_TOKENS) if shares else None
    return YesNo(model, head.to(device), device=device, prefixes=prefixes)
