"""Who may use the service: API keys, from the environment and from a file that may change while the server runs.

Knows nothing of HTTP but what a header's value may hold. Keys are kept and compared as digests.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from bento_service.errors import SettingsError

logger = logging.getLogger("bentoml.reranker")

_LOOK_SECONDS = 1.0
_MAX_FILE_BYTES = 1024 * 1024
_SCHEME = b"bearer "
_FileState = tuple[int, int, int] | None


class ApiKeys:
    """The keys that open the service.

    keys: that never change · path: of a file with further ones, one a line, `#` begins a comment; it is looked at once a second.
    Without either, everybody may come in.
    """

    def __init__(
        self, keys: Iterable[str] = (), path: Path | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fixed = _digests(keys)
        self._path = path
        self._clock = clock
        self._from_file: frozenset[bytes] = frozenset()
        self._state: _FileState = None
        self._told = False
        self._looked_at: float | None = None

    @property
    def required(self) -> bool:
        """Whether a request needs a key."""
        return bool(self._fixed) or self._path is not None

    def check(self) -> None:
        """Raise SettingsError where the file holds no key."""
        if self._path is not None:
            _read(self._path)

    def owner(self, values: Iterable[bytes]) -> str | None:
        """Find the key that one of these header values carries, bare or as `Bearer K`: its digest, hex, or None.

        All keys are compared in constant time, so the time taken tells nothing but how many there are.
        """
        known = self._known()
        found = None
        for value in values:
            for given in _candidates(value):
                digest = hashlib.sha256(given).digest()
                for key in known:
                    if hmac.compare_digest(digest, key):
                        found = key
        return found.hex() if found else None

    def _known(self) -> frozenset[bytes]:
        now = self._clock()
        if self._path is not None and (self._looked_at is None or now - self._looked_at >= _LOOK_SECONDS):
            self._looked_at = now
            self._look(self._path)
        return self._fixed | self._from_file

    def _look(self, path: Path) -> None:
        """Read the file again if it has changed; what cannot be read changes nothing and is told once."""
        state = _state(path)
        if state is not None and state == self._state:
            return
        try:
            self._from_file = _read(path)
        except SettingsError as error:
            if not self._told:
                logger.error("%s; the keys known before stay in force", error)  # noqa: TRY400  one line is all there is to say
            self._told = True
        else:
            self._state, self._told = state, False  # what could not be read is read again, changed or not


def _digests(keys: Iterable[str]) -> frozenset[bytes]:
    return frozenset(hashlib.sha256(key.encode()).digest() for key in keys)


def _candidates(value: bytes) -> list[bytes]:
    value = value.strip()
    bearer = value[len(_SCHEME) :].strip() if value.lower().startswith(_SCHEME) else b""
    return [each for each in (value, bearer) if each]


def _state(path: Path) -> _FileState:
    """What changes with the file; None while it is not there."""
    try:
        found = os.stat(path)  # noqa: PTH116  follows links, as Kubernetes swaps them
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(path: Path) -> frozenset[bytes]:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise SettingsError("RERANKER_API_KEYS_FILE: the file cannot be read as text: give one that this user may read") from None
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    keys = _digests(line for line in lines if line)
    if not keys:
        raise SettingsError("RERANKER_API_KEYS_FILE: the file holds no key: write one a line (# begins a comment)")
    return keys
