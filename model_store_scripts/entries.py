"""Finding entries in the Bento model store, damaged ones too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bentoml
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml.exceptions import NotFound

from bento_service.errors import ModelError


def find_entry(tag: str) -> Any:
    """Return an entry of the store, None if it is not there; a half-written one is a ModelError."""
    try:
        return bentoml.models.get(tag)
    except NotFound:
        return None
    except Exception:  # noqa: BLE001  BentoML raises as many kinds as there are ways to damage its model.yaml
        raise ModelError(
            f"the store holds a half-written {tag}: delete it (`bentoml models delete {tag}`) and save it again"
        ) from None


def all_tags() -> list[str]:
    """List every entry's full tag; BentoML's own list breaks on the first half-written one."""
    store = Path(BentoMLContainer.model_store_dir.get())
    return [f"{path.parent.name}:{path.name}" for path in sorted(store.glob("*/*")) if path.is_dir()]
