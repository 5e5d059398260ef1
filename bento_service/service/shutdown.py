"""SIGTERM, which circus sends to all worker processes at once: the entries end in their own time, the Scorers after them.

Left to itself, uvicorn takes no more connections from the signal on, and a Scorer ends while entries still need it.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import bentoml
from bentoml._internal.utils.circus import Arbiter
from circus.arbiter import Arbiter as CircusArbiter
from circus.watcher import Watcher

from bento_service.drain import Drain
from bento_service.service.workers import Workers
from bento_service.settings import run_directory

_LOOK_SECONDS = 0.1
_PARENT_SECONDS = 1.0
# In which an entry worker that got the signal, too, has left its mark, however busy its loop is.
_MARK_SECONDS = 2.0
_MARK = "draining"
_TASKS: set[asyncio.Task[None]] = set()  # the loop itself keeps only weak references


def bound_shutdown(seconds: float) -> None:
    """Make the parent's end orderly; run in the parent.

    circus kills what has not ended within so many seconds of SIGTERM, instead of BentoML's 86,400; and the Scorers' sockets stay until all has
    ended: BentoML removes them first, so that entry workers could open no connection to a Scorer while they drain.
    """
    made = Watcher.__init__

    def bounded(watcher: Any, *arguments: Any, **named: Any) -> None:
        made(watcher, *arguments, **named)
        watcher.graceful_timeout = seconds

    def stop(arbiter: Any) -> Any:
        atexit.register(arbiter.exit_stack.close)
        return CircusArbiter.stop(arbiter)

    Watcher.__init__ = bounded
    Arbiter.stop = stop


def drain_on_signals(drain: Drain) -> None:
    """Let SIGTERM and the parent's death begin the drain of an entry worker, and Ctrl-C one without a drain period; a second Ctrl-C ends it."""
    if bentoml.server_context.worker_index is None or _TASKS:
        return
    ends = _ends_of_uvicorn()

    def begin() -> None:
        _leave_mark()
        drain.begin(ends[signal.SIGTERM])

    def interrupted() -> None:
        _leave_mark()
        if drain.begun:
            ends[signal.SIGINT]()
        drain.begin(ends[signal.SIGTERM], at_once=True)

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, begin)
    loop.add_signal_handler(signal.SIGINT, interrupted)
    _keep(_when_orphaned(begin))


def outlive_entries() -> None:
    """Let SIGTERM and Ctrl-C end a Scorer once no entry worker runs any more; circus bounds the wait. One that is told alone ends soon."""
    if bentoml.server_context.worker_index is None or _TASKS:
        return
    end, workers = _ends_of_uvicorn()[signal.SIGTERM], Workers()
    begun = False

    async def last() -> None:
        try:
            told = time.monotonic()
            # Processes that end tell nobody but their parent.
            while workers.entries_run() and (_marked() or time.monotonic() - told < _MARK_SECONDS):  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_SECONDS)
        finally:
            end()

    def begin() -> None:
        nonlocal begun
        if not begun:
            begun = True
            _keep(last())

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, begin)
    _keep(_when_orphaned(begin))


async def _when_orphaned(begin: Callable[[], None]) -> None:
    """End, too, when the parent was killed: nobody would start a dead worker again, or pass a signal on."""
    parent = os.getppid()
    while os.getppid() == parent:  # noqa: ASYNC110  nobody tells of it
        await asyncio.sleep(_PARENT_SECONDS)
    begin()


def _leave_mark() -> None:
    """Tell the Scorers that the whole server ends."""
    directory = run_directory()
    if directory:
        Path(directory, _MARK).touch()


def _marked() -> bool:
    directory = run_directory()
    return directory is None or Path(directory, _MARK).exists()


def _keep(work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.get_running_loop().create_task(work)
    _TASKS.add(task)
    task.add_done_callback(_TASKS.discard)


def _ends_of_uvicorn() -> dict[signal.Signals, Callable[[], None]]:
    """Find what uvicorn would do on each signal: finish what it has and end."""

    def end_of(number: signal.Signals) -> Callable[[], None]:
        handler = signal.getsignal(number)
        return lambda: handler(number, None) if callable(handler) else None

    return {number: end_of(number) for number in (signal.SIGTERM, signal.SIGINT)}
