"""What is measured: a server that runs already, or one that is started for it, and what it says of itself."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bento_service.settings import known_variables
from saving import NotSaved, save
from servers import Server

READY_SECONDS = 10.0
UNTOLD = ("RERANKER_API_KEYS", "RERANKER_API_KEYS_FILE", "REDIS_URL")


class TargetError(Exception):
    """There is nothing to measure; the message says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """What answers at a URL. servers: those that were started here · settings: what they were started with beside the environment's."""

    url: str
    servers: Sequence[Server] = ()
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def processes(self) -> list[int]:
        """The first process of each server that was started here."""
        return [server.process.pid for server in self.servers]

    def about(self) -> dict[str, Any]:
        """Ask it for its model, precision, limits and versions; what it does not tell is missing."""
        health, info = self._get("/health"), self._get("/info")
        told = {name: health[name] for name in ("model", "limits", "versions") if name in health}
        return {"started_here": bool(self.servers), "settings": self._said(), **told, "info": info}

    def _said(self) -> dict[str, str]:
        """Give the settings that a server started here has, the environment's included; no secrets."""
        if not self.servers:
            return {}
        outer = {name: os.environ[name] for name in known_variables() if os.environ.get(name)}
        return {name: value for name, value in {**outer, **self.settings}.items() if name not in UNTOLD}

    def _get(self, path: str) -> dict[str, Any]:
        key = os.environ.get("KEY")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        with contextlib.suppress(httpx.HTTPError, ValueError):
            answer = httpx.get(self.url + path, headers=headers, timeout=READY_SECONDS)
            if answer.status_code == httpx.codes.OK and isinstance(told := answer.json(), dict):
                return told
        return {}


@contextlib.contextmanager
def running(url: str | None, **settings: object) -> Iterator[Target]:
    """Give the server at url, or start one of the built-in model (or RERANKER_MODEL of the user's store) with these settings beside the environment's.

    Raises TargetError.
    """
    if url:
        _check(url)
        yield Target(url.rstrip("/"))
        return
    with model_home() as home:
        said = {"QUANTIZATION": os.environ.get("QUANTIZATION", "auto")} | {name: str(value) for name, value in settings.items()}
        with contextlib.ExitStack() as stack:
            server = Server(home, **said)
            stack.callback(server.stop)
            wait_ready(server)
            yield Target(server.url, [server], said)


def wait_ready(server: Server) -> None:
    """Wait for a server that was just started.

    Raises TargetError with its log.
    """
    try:
        server.wait_ready()
    except AssertionError as error:
        raise TargetError(str(error)) from None


@contextlib.contextmanager
def model_home(*precisions: str) -> Iterator[Path]:
    """Give a BENTOML_HOME with the model: the user's own where RERANKER_MODEL is set, else one with the built-in model in these precisions."""
    if os.environ.get("RERANKER_MODEL"):
        yield Path(os.environ.get("BENTOML_HOME") or Path.home() / "bentoml")
        return
    with tempfile.TemporaryDirectory(prefix="reranker-load-home-") as folder:
        for precision in precisions or (os.environ.get("QUANTIZATION", "auto"),):
            try:
                save(Path(folder), precision)
            except NotSaved as error:
                raise TargetError(f"the built-in model could not be saved: {error}") from None
        yield Path(folder)


def _check(url: str) -> None:
    if not url.startswith(("http://", "https://")):
        raise TargetError(f"{url} is no URL of a server: say http://host:port")
    try:
        ready = httpx.get(url.rstrip("/") + "/readyz", timeout=READY_SECONDS).status_code
    except httpx.HTTPError as error:
        raise TargetError(
            f"no server answers at {url} ({type(error).__name__}): start one with make serve, or leave URL out"
        ) from None
    if ready != httpx.codes.OK:
        raise TargetError(f"the server at {url} is not ready: /readyz answers {ready}")
