"""What the store knows about a saved model: written by model_store_scripts, read by every worker.

No weights are touched here; the entry service reads this to tokenise and to name what it serves.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from bento_service.errors import ModelError
from bento_service.settings import Quantization

# Part of every version in the store: one more when what save_model writes changes, int8's recipe and its texts included.
FORMAT_VERSION = 2
MODULE = "reranker"
TOKENIZER_FILE = "tokenizer.json"
# How far a golden pair's score, 0..1, may stray from full precision for `auto` to take a variant.
DRIFT_BOUND: Mapping[str, float] = {"bf16": 0.02, "fp16": 0.02, "int8": 0.05}
# Far from the middle of a sigmoid scores hardly move, so the order counts as well: trained models keep 0.98, random weights 0.88.
ORDER_BOUND = 0.8
QUANTISED_FILE = "quantised.safetensors"
Kind = Literal["cross-encoder", "bi-encoder", "yes-no"]
Activation = Literal["sigmoid", "identity", "cosine"]


class GoldenPair(BaseModel):
    """A pair and the score (0..1) that the reference forward in float32 gave it when the model was saved."""

    model_config = ConfigDict(frozen=True)
    query: str
    document: str
    score: float


class ModelInfo(BaseModel):
    """The metadata of one model in the Bento model store."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    source: str
    revision: str
    licence: str | None = None
    kind: Kind
    architecture: str
    quantization: Quantization
    dtype: str
    # The largest difference of a golden pair's score, 0..1, from full precision, when the variant was saved; None where it was not measured.
    drift: float | None = None
    # How alike the orders are that the variant and full precision give 32 pairs: Kendall's tau, 1 at best.
    order: float | None = None
    max_length: int
    activation: Activation
    uses_token_types: bool
    pooling: Literal["mean", "cls", "max"] | None = None
    # What stands before a query, before a document and behind it: for a yes/no model its whole prompt, in this order.
    query_prompt: str = ""
    # The same with {instruction} where a request's own goes; None for models that take none.
    instruction_prompt: str | None = None
    document_prompt: str = ""
    suffix: str = ""
    # The tokens of a yes/no language model's answers: yes, and no where it counts. None for models with a head of one label.
    answers: list[int] | None = None
    trust_remote_code: bool = False
    source_sha256: dict[str, str]
    files_sha256: dict[str, str]
    library_versions: dict[str, str]
    golden: list[GoldenPair]

    @classmethod
    def from_metadata(cls, metadata: dict[str, Any], tag: str) -> ModelInfo:
        """Read a store entry's metadata; ModelError if it was not written by save_model."""
        try:
            return cls.model_validate(metadata)
        except ValidationError:
            raise ModelError(
                f"model {tag} was not saved by this version's save_model: save it again with `make model MODEL=<source>`"
            ) from None

    @property
    def keeps_bound(self) -> bool:
        """Whether the scores are near enough to full precision for nobody to have asked for this variant."""
        if self.quantization == "none":
            return True
        if self.drift is None or self.order is None:
            return False
        return self.drift <= DRIFT_BOUND.get(self.quantization, 0.0) and self.order >= ORDER_BOUND

    def prompt_for(self, instruction: str | None) -> str:
        """Return what stands before a query; an instruction takes the place of the model's own."""
        if instruction and self.instruction_prompt:
            return self.instruction_prompt.replace("{instruction}", instruction)
        return self.query_prompt

    def length_in_use(self, asked: int | None) -> int:
        """Return the window in use; ModelError if more was asked for than the model has."""
        if asked is not None and asked > self.max_length:
            raise ModelError(
                f"RERANKER_MAX_LENGTH={asked} is over the model's window of {self.max_length} tokens: lower or unset it"
            )
        return asked or self.max_length

    def fingerprint(self, *, dtype: str, device: str, max_length: int, engine: str = "pytorch") -> str:
        """Name what gives a pair its score: weights, tokenizer, length, and what really runs. 64 hex digits."""
        parts: dict[str, Any] = {
            "files": self.files_sha256,
            "kind": self.kind,
            "pooling": self.pooling,
            "prompts": [self.query_prompt, self.document_prompt, *([self.instruction_prompt] if self.instruction_prompt else [])],
            "max_length": max_length,
            "dtype": dtype,
            "device": device,
            "engine": engine,
        }
        if self.kind == "yes-no":
            parts |= {"suffix": self.suffix, "answers": self.answers}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Hash a file in pieces, so that gigabytes of weights need no memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_files(folder: Path, info: ModelInfo, tag: str) -> None:
    """Compare every stored file with its hash; ModelError names the first that is missing or damaged."""
    for name, expected in info.files_sha256.items():
        path = folder / name
        if not path.is_file():
            raise ModelError(f"model {tag} lacks its file {name}: delete it (`bentoml models delete {tag}`) and save it again")
        if sha256_of(path) != expected:
            raise ModelError(f"model {tag} is damaged in {name}: delete it (`bentoml models delete {tag}`) and save it again")
