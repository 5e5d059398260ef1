"""What is decided before any worker starts: settings, the model's full tag, how many Scorers; and how a failed start ends."""

from __future__ import annotations

import logging
import math
import os
import signal
from pathlib import Path
from typing import Any, NoReturn

import bentoml
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml.exceptions import BentoMLConfigException, NotFound

from bento_service.access import ApiKeys
from bento_service.cache.connection import check_address
from bento_service.errors import ModelError, RerankerError
from bento_service.hardware import fast_precisions, gpu_count
from bento_service.model_info import TOKENIZER_FILE, ModelInfo, check_files
from bento_service.service.log_format import use_log_format
from bento_service.settings import Settings, load_settings, names_model, run_directory
from bento_service.store import command_that_saves, packed_tag, preferred, variants, wanted_tag
from bento_service.tokenizer import Cut, PairTokenizer

logger = logging.getLogger("bentoml.reranker")

_FAILED_FILE = "scorer.failed"


def _stored(tag: str) -> Any:
    """Find a model in the store; None if it is not there."""
    try:
        return bentoml.models.get(tag)
    except NotFound:
        return None
    except Exception:  # noqa: BLE001  BentoML raises as many kinds as there are ways to damage its model.yaml
        raise ModelError(
            f"the store holds a half-written {tag}: delete it (`bentoml models delete {tag}`) and save it again"
        ) from None


def _resolve(settings: Settings) -> tuple[Any, ModelInfo]:
    """Find the model to serve and what is known about it; BentoMLConfigException with one clear line otherwise."""
    packed = packed_tag(Path(__file__).resolve().parents[2])
    asked = settings.asked_quantization
    tag = packed if packed and not names_model() else wanted_tag(settings)
    stored = _fastest(settings) if asked == "auto" and tag != packed else _stored(tag)
    if stored is None:
        base = _stored(settings.model)
        source = base.info.metadata.get("source") if base else None
        command = command_that_saves(settings, source)
        raise BentoMLConfigException(f"model {tag} is not in the Bento model store: save it with `{command}`")
    info = ModelInfo.from_metadata(stored.info.metadata, str(stored.tag))
    _warn_of_newer(settings, stored)
    if asked not in ("auto", info.quantization):
        raise BentoMLConfigException(
            f"QUANTIZATION={asked}, but model {stored.tag} is saved as {info.quantization}: unset QUANTIZATION"
        )
    return stored, info


def _saved_variants(settings: Settings) -> list[Any]:
    """Find RERANKER_MODEL in every precision that it is saved in, the newest last."""
    found = [stored for name in variants(settings.model) if (stored := _stored(name)) is not None]
    return sorted(found, key=lambda stored: stored.creation_time)


def _warn_of_newer(settings: Settings, stored: Any) -> None:
    """Say it when another variant of the model holds newer content than the one asked for."""
    if ":" in settings.model or settings.asked_quantization == "auto":
        return
    newest = (_saved_variants(settings) or [stored])[-1]
    if newest.tag.version != stored.tag.version and newest.creation_time > stored.creation_time:
        logger.warning(
            "%s is served, but %s was saved later from other content: save both, or name a version", stored.tag, newest.tag
        )


def _fastest(settings: Settings) -> Any:
    """Find the variant of RERANKER_MODEL that is fastest here and keeps its bound; None if none is saved.

    Variants of one content share a version, so that an older one in a faster precision is not taken for the newest.
    """
    saved = _saved_variants(settings)
    if not saved:
        return None
    current = [stored for stored in saved if stored.tag.version == saved[-1].tag.version]
    known = [(stored, ModelInfo.from_metadata(stored.info.metadata, str(stored.tag))) for stored in current]
    precisions = fast_precisions(settings.device)
    stored, info = preferred(known, precisions)
    if not info.keeps_bound:
        logger.warning("no saved variant of %s is known to keep its bound: the most faithful one is served", settings.model)
    elif precisions[0] not in {each.quantization for _, each in known}:
        command = command_that_saves(settings, info.source)
        logger.info("%s is served; %s is faster here: `%s` saves it, if the model bears it", stored.tag, precisions[0], command)
    return stored


def check_model() -> None:
    """Check what is cheap to check in the parent; BentoMLConfigException stops the start with one line."""
    try:
        if SETTINGS.redis_address:
            check_address(SETTINGS.redis_address)
        check_files(Path(STORED.path), INFO, TAG)
        INFO.length_in_use(SETTINGS.max_length)
    except RerankerError as error:
        raise BentoMLConfigException(str(error)) from None
    tokenizer = make_tokenizer()
    try:
        warm_up_pair(tokenizer)
    except RerankerError:
        raise BentoMLConfigException(
            f"RERANKER_MAX_LENGTH={SETTINGS.max_length} leaves no room for a query of one word: raise or unset it"
        ) from None
    finally:
        tokenizer.close()


def check_keys() -> None:
    """Check the file of API keys, or say that there are none; BentoMLConfigException stops the start with one line."""
    try:
        API_KEYS.check()
    except RerankerError as error:
        raise BentoMLConfigException(str(error)) from None
    if not API_KEYS.required:
        logger.warning("no API keys are set: whoever reaches the port may use this server (RERANKER_API_KEYS)")


def make_tokenizer() -> PairTokenizer:
    """Make the tokenizer of the model served."""
    length = INFO.length_in_use(SETTINGS.max_length)
    return PairTokenizer(Path(STORED.path, TOKENIZER_FILE), INFO, max_length=length, workers=SETTINGS.tokenizer_workers)


def warm_up_pair(tokenizer: PairTokenizer) -> bytes:
    """Pack the short pair that new Scorers are trained with; QueryTooLong if the window does not hold even that."""
    [pair] = tokenizer.encode_now("query", ["document"], Cut(), math.inf, 0)
    return pair.windows[0].pack()


def ready_file(index: int) -> Path | None:
    """Name the mark that model worker `index` leaves when it has started once; None outside a server."""
    directory = run_directory()
    return Path(directory, f"scorer-{index}.ready") if directory else None


def mark_entry_ready() -> None:
    """Leave a mark that this entry worker has a warm Scorer."""
    index, directory = bentoml.server_context.worker_index, run_directory()
    if directory and index is not None:
        Path(directory, f"entry-{index}.ready").touch()


def all_entries_were_ready() -> bool:
    """Tell whether every entry worker has had a warm Scorer: /readyz is answered by any one of them, for all."""
    directory = run_directory()
    if directory is None or bentoml.server_context.worker_index is None:
        return True
    return len(list(Path(directory).glob("entry-*.ready"))) >= SETTINGS.workers


def give_up(error: Exception, *, first_start: bool = False) -> NoReturn:
    """End a model worker that cannot go on, in one line; on the first start end the server too, or circus would try for ever.

    In a process that is no worker, where a program calls the service itself, the error is raised instead.
    """
    if bentoml.server_context.worker_index is None:
        raise error
    known = isinstance(error, RerankerError)
    logger.critical("the model cannot be served: %s", error if known else f"{type(error).__name__}: {error}", exc_info=not known)
    if first_start:
        Path(run_directory() or "", _FAILED_FILE).touch()
        os.kill(os.getppid(), signal.SIGTERM)
    os._exit(1)


def exit_as_the_scorer_did() -> None:
    """Give `bentoml serve` a non-zero exit code when a Scorer's first start failed: circus itself would exit 0."""
    if Path(BentoMLContainer.prometheus_multiproc_dir.get(), _FAILED_FILE).exists():
        os._exit(1)


try:
    SETTINGS = load_settings()
    use_log_format(SETTINGS.log_format)
    STORED, INFO = _resolve(SETTINGS)
except RerankerError as failure:
    raise BentoMLConfigException(str(failure)) from None
TAG = str(STORED.tag)
API_KEYS = ApiKeys(SETTINGS.api_key_list, SETTINGS.api_keys_file)
SCORER_COUNT = SETTINGS.scorer_workers or (max(1, gpu_count()) if SETTINGS.device in ("auto", "cuda") else 1)
