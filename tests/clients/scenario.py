"""How a client script tells what its package does: it runs in the package's own environment and needs nothing but Python.

    python cohere_calls.py URL

It makes its calls, says that it is ready, waits for a line on stdin, and makes those that find the server overloaded, all at once.
Each event is one line of JSON on stdout; whatever else prints goes to stderr.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "clients.md"
DOCUMENTED_URL = "http://localhost:3000"
COMMON = "All examples"  # the heading of what comes before each of them
_SNIPPET = re.compile(r"^### (?P<name>[^\n]+)\n(?:(?!^#).)*?^```python\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)
_OUT = sys.stdout
_TELLING = threading.Lock()
# Who makes the HTTP calls of these packages, at which level it logs each answer, and what both lines have in common.
_LOGGERS = {"httpx": logging.INFO, "urllib3.connectionpool": logging.DEBUG}
_STATUS = re.compile(r"HTTP/1\.1\"? (\d{3})")

Call = Callable[[str], Any]


def snippets() -> dict[str, str]:
    """Read the guide's examples, by their headings."""
    return {match["name"]: match["code"] for match in _SNIPPET.finditer(GUIDE.read_text())}


class Example:
    """An example of the guide, run against a server. names: what its code left behind · printed: its lines."""

    def __init__(self, name: str, url: str) -> None:
        self.printed: list[str] = []
        # The examples of a script run in several threads, so each has a print of its own.
        self.names: dict[str, Any] = {"print": lambda *values: self.printed.append(" ".join(map(str, values)))}
        for each in dict.fromkeys((COMMON, name)):
            code = snippets()[each].replace(DOCUMENTED_URL, url)
            exec(compile(code, str(GUIDE), "exec"), self.names)  # noqa: S102  the guide's own code


def example(name: str) -> Call:
    """Make a call of an example; its answer is what the example prints."""
    return lambda url: Example(name, url).printed


def ranked(results: Iterable[tuple[int, float, str | None]]) -> list[dict[str, Any]]:
    """Tell an answer: each result's index, score, and document if the client has it."""
    return [{"index": index, "score": score, "text": text} for index, score, text in results]


def play(examples: Sequence[str], calls: Mapping[str, Call], overloaded: Mapping[str, Call] | None = None) -> None:
    """Run a script's examples and calls one after the other, and the overloaded ones (default: the examples) at once."""
    [url] = sys.argv[1:]
    sys.stdout = sys.stderr
    of_guide = {name: example(name) for name in examples}
    at_once = of_guide if overloaded is None else overloaded
    for logger, level in _LOGGERS.items():
        logging.getLogger(logger).addHandler(_Statuses())
        logging.getLogger(logger).setLevel(level)  # some of the packages raise it when they are imported
    for name, call in (of_guide | dict(calls)).items():
        _run(name, call, url)
    threads = [threading.Thread(target=_run, args=(f"{name}, overloaded", at_once[name], url)) for name in at_once]
    _tell("ready", overloaded=[f"{name}, overloaded" for name in at_once])
    sys.stdin.readline()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _run(name: str, call: Call, url: str) -> None:
    threading.current_thread().name = name
    try:
        _tell("answered", call=name, answer=call(url))
    except Exception as error:  # noqa: BLE001  whether it is the right one, the test judges
        kinds = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__]
        _tell("raised", call=name, kinds=kinds, message=str(error))


def _tell(event: str, **fields: Any) -> None:
    with _TELLING:
        print(json.dumps({"event": event} | fields), file=_OUT, flush=True)


class _Statuses(logging.Handler):
    """Tells the status of each HTTP answer, by the name of the thread that got it."""

    def emit(self, record: logging.LogRecord) -> None:
        if found := _STATUS.search(record.getMessage()):
            _tell("status", call=record.threadName, status=int(found[1]))
