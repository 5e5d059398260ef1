"""What the server says about its model to programs: TEI's /info and OpenAI's list of models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bento_service import __version__
from bento_service.model_info import ModelInfo
from bento_service.scorer_link import ScorerLink
from bento_service.settings import Settings


class Catalog:
    """Describes the one model that is served. created: when it was saved, Unix time, seconds."""

    def __init__(self, *, tag: str, info: ModelInfo, created: int, links: Sequence[ScorerLink], settings: Settings) -> None:
        self._tag = tag
        self._info = info
        self._created = created
        self._links = links
        self._settings = settings

    def models(self) -> dict[str, Any]:
        """GET /v1/models."""
        model = {"id": self._tag, "object": "model", "created": self._created, "owned_by": self._info.source}
        return {"object": "list", "data": [model]}

    def info(self) -> dict[str, Any]:
        """GET /info: TEI's names, then ours."""
        status = next((link.status for link in self._links if link.status), None)
        return {
            "model_id": self._info.source,
            "model_sha": self._info.revision,
            "model_dtype": status.dtype if status else self._info.dtype,
            "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
            "max_input_length": self._info.length_in_use(self._settings.max_length),
            "max_batch_tokens": self._settings.max_batch_tokens,
            "max_client_batch_size": self._settings.max_documents,
            "auto_truncate": True,
            "tokenization_workers": self._settings.tokenizer_workers,
            "version": __version__,
            "tag": self._tag,
            "kind": self._info.kind,
            "activation": self._info.activation,
            "quantization": status.quantization if status else None,
            "quantization_asked": self._settings.asked_quantization,
            "device": status.device if status else None,
            "fingerprint": status.fingerprint if status else None,
        }
