"""SIGTERM, which circus sends to all worker processes at once: the entries end in their own time, the Scorers after them.

Left to itself, uvicorn takes no more connections from the signal on, and a Scorer ends while entries still need it.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any

import bentoml
from circus.watcher import Watcher

from bento_service.drain import Drain
from bento_service.service.workers import Workers

_LOOK_SECONDS = 0.1
_TASKS: set[asyncio.Task[None]] = set()  # the loop itself keeps only weak references


def bound_shutdown(seconds: float) -> None:
    """Let circus kill what has not ended within so many seconds of SIGTERM, instead of BentoML's 86,400; run in the parent."""
    made = Watcher.__init__

    def bounded(watcher: Any, *arguments: Any, **named: Any) -> None:
        made(watcher, *arguments, **named)
        watcher.graceful_timeout = seconds

    Watcher.__init__ = bounded


def drain_on_signals(drain: Drain) -> None:
    """Let SIGTERM begin the drain of an entry worker, and Ctrl-C one without a drain period; a second Ctrl-C ends it."""
    if bentoml.server_context.worker_index is None:
        return
    ends = _ends_of_uvicorn()

    def interrupted() -> None:
        if drain.begun:
            ends[signal.SIGINT]()
        drain.begin(ends[signal.SIGTERM], at_once=True)

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, drain.begin, ends[signal.SIGTERM])
    loop.add_signal_handler(signal.SIGINT, interrupted)


def outlive_entries() -> None:
    """Let SIGTERM and Ctrl-C end a Scorer once no entry worker runs any more; circus bounds the wait."""
    if bentoml.server_context.worker_index is None:
        return
    end, workers = _ends_of_uvicorn()[signal.SIGTERM], Workers()
    loop = asyncio.get_running_loop()

    async def last() -> None:
        try:
            while workers.entries_run():  # noqa: ASYNC110  processes that end tell nobody but their parent
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            end()

    def begin() -> None:
        if not _TASKS:
            _TASKS.add(loop.create_task(last()))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, begin)


def _ends_of_uvicorn() -> dict[signal.Signals, Callable[[], None]]:
    """Find what uvicorn would do on each signal: finish what it has and end."""

    def end_of(number: signal.Signals) -> Callable[[], None]:
        handler = signal.getsignal(number)
        return lambda: handler(number, None) if callable(handler) else None

    return {number: end_of(number) for number in (signal.SIGTERM, signal.SIGINT)}
