"""Save a model into the Bento model store and print its tag as the last line.

python -m model_store_scripts.save_model --model BAAI/bge-reranker-base --quantization bf16
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import version as library_version
from pathlib import Path
from typing import Any

import bentoml
import torch
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml.exceptions import BentoMLException

from bento_service.errors import ModelError
from bento_service.hardware import fast_precisions
from bento_service.model_info import FORMAT_VERSION, MODULE, Kind, ModelInfo, check_files, sha256_of
from bento_service.settings import Quantization
from bento_service.store import variant_name
from model_store_scripts.calibration import ORDERED, score_texts
from model_store_scripts.entries import all_tags, find_entry
from model_store_scripts.golden import check_padding, load_reference, score_golden
from model_store_scripts.inspection import Findings, inspect
from model_store_scripts.precision import PRECISIONS, PrecisionError, faithfulness, write_weights
from model_store_scripts.sources import HubUnreachable, Source, find_source, store_name

_LIBRARIES = ("bentoml", "torch", "transformers", "tokenizers", "safetensors")


def save_fastest(model: str, *, device: str = "auto", **options: Any) -> str:
    """Save a model in the precision that is fastest on a device of this machine and keeps its bound; returns its full tag.

    device: as RERANKER_DEVICE. Without the hub, the fastest of those that were saved before.
    """
    unreachable: HubUnreachable | None = None
    for quantization in fast_precisions(device):
        try:
            tag = save_model(model, quantization=quantization, **options)
        except HubUnreachable as error:
            unreachable = error
            continue
        except PrecisionError as error:
            if quantization == "none":
                raise
            print(f"note: {quantization}: {error}; the next precision is tried", file=sys.stderr)
            continue
        info = ModelInfo.from_metadata(find_entry(tag).info.metadata, tag)
        if info.keeps_bound:
            return tag
        if info.drift is None:
            strays = f"{tag} was saved where {quantization} cannot run, so that nobody knows how near it is to full precision"
        else:
            strays = f"{tag} strays by {info.drift:.3f} from full precision and keeps its order to {info.order:.2f} of 1"
            strays += f", which is beyond {quantization}'s bounds"
        print(f"note: {strays}: another precision is saved", file=sys.stderr)
    raise unreachable or ModelError("the model keeps no precision's bound: save it with --quantization none")


def save_model(
    model: str,
    *,
    revision: str | None = None,
    quantization: Quantization = "none",
    max_length: int | None = None,
    name: str | None = None,
    kind: Kind | None = None,
    activation: Any = None,
    template: str | None = None,
    trust_remote_code: bool = False,
) -> str:
    """Save a model and return its full tag; a model that is there already, whole, is left as it is.

    Raises ModelError, and leaves nothing behind in the store then.
    """
    try:
        source = find_source(model, revision, with_code=trust_remote_code)
    except HubUnreachable as error:
        tag = _saved_before(model, revision, quantization, name)
        if tag is None:
            raise
        print(f"note: {error}; {tag} was saved from it before and is used", file=sys.stderr)
        return tag
    findings = inspect(
        source.folder,
        kind=kind,
        max_length=max_length,
        activation=activation,
        trust_remote_code=trust_remote_code,
        origin=source.origin,
        template=template,
    )
    if findings.activation == "identity":
        print("note: this model's own activation is Identity, so its scores are logits; --activation sigmoid maps them to 0..1")
    hashes = {path.name: sha256_of(path) for path in sorted(source.folder.glob("*.safetensors"))}
    hashes["tokenizer"] = hashlib.sha256(findings.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    base = variant_name(store_name(name) if name else source.name, quantization)
    tag = f"{base}:{_version(source, findings, hashes)}"
    saved = _whole(tag)
    if saved:
        if saved.quantization != quantization:
            raise ModelError(f"{tag} is taken by a variant in another precision: give this one another NAME")
        print(f"{tag} is in the store already")
        return tag
    _write_entry(tag, source, findings, hashes, quantization, trust_remote_code=trust_remote_code)
    return tag


def _version(source: Source, findings: Findings, hashes: dict[str, str]) -> str:
    """Name the content: the same weights and settings give the same version in every variant, so saving twice is saving once."""
    parts = [
        FORMAT_VERSION,
        hashes,
        sha256_of(source.folder / "config.json"),
        source.revision,
        findings.kind,
        findings.max_length,
        findings.activation,
        findings.pooling,
        findings.uses_token_types,
        findings.query_prompt,
        findings.document_prompt,
    ]
    if findings.kind == "yes-no":
        parts += [findings.instruction_prompt, findings.suffix, findings.answers]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _saved_before(model: str, revision: str | None, quantization: Quantization, name: str | None) -> str | None:
    """Find the newest entry that was saved from a hub id, for a time without the hub."""
    found = []
    for tag in all_tags():
        try:
            stored = find_entry(tag)
            info = ModelInfo.from_metadata(stored.info.metadata, tag)
        except ModelError:
            continue  # damaged, or another program's
        wanted_name = variant_name(store_name(name), quantization) if name else stored.tag.name
        if (info.source, info.quantization, stored.tag.name) == (model, quantization, wanted_name) and revision in (
            None,
            info.revision,
        ):
            found.append(stored)
    return str(max(found, key=lambda stored: stored.creation_time).tag) if found else None


def _whole(tag: str) -> ModelInfo | None:
    """Return what the store knows of this entry, None if it is not there; a damaged one is a ModelError."""
    stored = find_entry(tag)
    if stored is None:
        return None
    info = ModelInfo.from_metadata(stored.info.metadata, tag)
    check_files(Path(stored.path), info, tag)
    return info


def _write_entry(
    tag: str, source: Source, findings: Findings, hashes: dict[str, str], quantization: Quantization, *, trust_remote_code: bool
) -> None:
    try:
        model = load_reference(source.folder, findings, trust_remote_code=trust_remote_code)
        check_padding(model, findings)
        golden = score_golden(model, findings)
        reference = None if quantization == "none" else score_texts(model, findings, ORDERED)
    except ModelError:
        raise
    except Exception as error:
        # torch, safetensors and transformers raise as many kinds as there are ways to damage weights.
        summary = str(error).strip().splitlines()[0][:200] if str(error).strip() else "no reason given"
        raise ModelError(f"the model cannot be run ({type(error).__name__}: {summary}): give a complete model") from error
    with (
        _written_or_not_at_all(tag) as cleaning,
        bentoml.models.create(tag, module=MODULE, labels={"quantization": quantization}) as entry,
    ):
        folder = Path(entry.path)
        dtype = write_weights(model, findings, quantization, folder)
        (folder / "tokenizer.json").write_text(findings.tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
        for extra in source.folder.glob("*.py") if trust_remote_code else ():
            shutil.copy(extra, folder)
        info = ModelInfo(
            source=source.origin,
            revision=source.revision,
            licence=source.licence,
            kind=findings.kind,
            architecture=findings.architecture,
            quantization=quantization,
            dtype=dtype,
            max_length=findings.max_length,
            activation=findings.activation,
            uses_token_types=findings.uses_token_types,
            pooling=findings.pooling,
            query_prompt=findings.query_prompt,
            document_prompt=findings.document_prompt,
            instruction_prompt=findings.instruction_prompt,
            suffix=findings.suffix,
            answers=findings.answers,
            trust_remote_code=trust_remote_code,
            source_sha256=hashes,
            files_sha256={path.name: sha256_of(path) for path in sorted(folder.iterdir())},
            library_versions={name: library_version(name) for name in _LIBRARIES},
            golden=golden,
        )
        info = info.model_copy(update=faithfulness(folder, info, reference))
        # BentoML's metadata cannot hold None.
        entry.info.metadata.update(info.model_dump(exclude_none=True))
        # Until here all was in a temporary folder; what follows is BentoML's copying into the store.
        cleaning.push(lambda _type, error, _traceback: _remove_half_written(tag, error))


@contextlib.contextmanager
def _written_or_not_at_all(tag: str) -> Iterator[contextlib.ExitStack]:
    """Translate what stops the writing. The stack given is for cleaning up the store, once something of ours may be in it."""
    try:
        with contextlib.ExitStack() as cleaning:
            yield cleaning
    except BentoMLException as error:
        if not _whole(tag):  # else another process has saved the same content meanwhile
            raise ModelError(f"the model could not be written ({error}): save again") from None
    except Exception as error:
        # safetensors wraps the operating system's errors in a class of its own.
        if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
            raise
        reason = "copying into the store failed" if isinstance(error, shutil.Error) else getattr(error, "strerror", None) or error
        raise ModelError(f"the model could not be written ({reason}): make room on the disk and save again") from None


def _remove_half_written(tag: str, error: BaseException | None) -> None:
    """Clean up after whatever stopped the last step; BentoML forgets Ctrl-C, `latest` and the name's folder."""
    if error is not None and not isinstance(error, BentoMLException):  # that one says that the entry is another process's
        _remove(tag)


def _remove(tag: str) -> None:
    """Delete an entry and what points to it, whatever state it is in."""
    folder = Path(BentoMLContainer.model_store_dir.get(), *tag.split(":"))
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.parent.is_dir():
        return
    if any(path.is_dir() for path in folder.parent.iterdir()):
        # BentoML writes it anew when it is not there, but trips over an empty one.
        (folder.parent / "latest").unlink(missing_ok=True)
    else:
        shutil.rmtree(folder.parent, ignore_errors=True)


def arguments() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(description="Save a model into the Bento model store; the last line printed is its tag.")
    parser.add_argument("--model", required=True, help="hub id (owner/name), folder, or `builtin`")
    parser.add_argument("--revision", help="hub revision; default: the newest")
    parser.add_argument(
        "--quantization",
        choices=["auto", *PRECISIONS],
        default="auto",
        help="precision the weights are saved in; auto: the fastest on this machine that keeps its bound",
    )
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda", "mps"], default="auto", help="that `--quantization auto` is to be fast on"
    )
    parser.add_argument("--max-length", type=int, help="tokens of a pair; default: the model's window")
    parser.add_argument("--name", help="name in the store; default: the model's own")
    parser.add_argument("--kind", choices=["cross-encoder", "bi-encoder", "yes-no"], help="only where the config does not tell")
    parser.add_argument("--activation", choices=["sigmoid", "identity"], help="default: what the model declares, else sigmoid")
    parser.add_argument(
        "--template",
        help="prompt of a yes/no model: `qwen3`, or a file with a chat template; default: what the model's files have",
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run the model's own code, now and at every start")
    return parser


def main() -> int:
    """Run the command; errors are one line."""
    options = arguments().parse_args()
    torch.set_grad_enabled(mode=False)
    try:
        chosen = {
            name: getattr(options, name)
            for name in ("revision", "max_length", "name", "kind", "activation", "template", "trust_remote_code")
        }
        if options.quantization == "auto":
            tag = save_fastest(options.model, device=options.device, **chosen)
        else:
            tag = save_model(options.model, quantization=options.quantization, **chosen)
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(tag)
    return 0


if __name__ == "__main__":
    sys.exit(main())
