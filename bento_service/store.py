"""Which saved model is served: its tag in the store, pinned to a version.

BentoML resolves "x:latest" anew at every import, so that a newer save would silently change an old Bento.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar, get_args

import yaml

from bento_service.errors import ModelError
from bento_service.model_info import ModelInfo
from bento_service.settings import Quantization, Settings

T = TypeVar("T")

BUILTIN_NAME = "all-minilm-l6-v2"


def variant_name(name: str, quantization: Quantization) -> str:
    """Name the entry of a quantised variant; all variants of a model share its versions."""
    return name if quantization == "none" or name.endswith(f"-{quantization}") else f"{name}-{quantization}"


def variants(model: str) -> list[str]:
    """Name the entries that hold RERANKER_MODEL in any precision, with its version if it has one."""
    name, _, version = model.partition(":")
    names = dict.fromkeys(variant_name(name, quantization) for quantization in get_args(Quantization))
    return [f"{each}:{version}" if version else each for each in names]


def preferred(saved: Sequence[tuple[T, ModelInfo]], precisions: Sequence[Quantization]) -> tuple[T, ModelInfo]:
    """Pick of a model's saved variants the fastest one that keeps its bound, or else the most faithful one.

    saved: one at least · precisions: those that pay here, the fastest first.
    """
    ranks = {quantization: rank for rank, quantization in enumerate([*precisions, "none"])}
    within = [pair for pair in saved if pair[1].quantization in ranks and pair[1].keeps_bound]
    if within:
        return min(within, key=lambda pair: ranks[pair[1].quantization])
    return min(saved, key=lambda pair: math.inf if pair[1].drift is None else pair[1].drift)


def wanted_tag(settings: Settings) -> str:
    """Name the store entry that RERANKER_MODEL and QUANTIZATION ask for together; without a version if none was given."""
    name, _, version = settings.model.partition(":")
    asked = settings.asked_quantization
    wanted = name if asked == "auto" else variant_name(name, asked)
    return f"{wanted}:{version}" if version else wanted


def command_that_saves(settings: Settings, source: str | None) -> str:
    """Spell the command that puts the wanted entry into the store; source: where its other variant came from, if there is one."""
    name = settings.model.partition(":")[0]
    known = source or ("builtin" if name == BUILTIN_NAME else "<hub id or folder>")
    asked = settings.asked_quantization
    quantization = "" if asked == "auto" else f" QUANTIZATION={asked}"
    return f"make model MODEL={known}{quantization} NAME={name}"


def packed_tag(project: Path) -> str | None:
    """Return the full tag of the model packed into the Bento that `project` is the source folder of; None outside a Bento."""
    manifest = project.parent / "bento.yaml"
    if project.name != "src" or not manifest.is_file():
        return None
    bento = yaml.safe_load(manifest.read_text(encoding="utf-8"))
    tags = [model["tag"] for service in bento.get("services", []) for model in service.get("models", [])]
    if not tags:
        raise ModelError(f"the Bento {bento.get('tag', '')} has no model packed into it: build it again with `make build`")
    return str(tags[0])
