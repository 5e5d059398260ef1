"""Queries and documents from files of the user's: one a line, tab-separated, or JSON lines."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

FIELDS = {"query": ("query", "text"), "document": ("document", "text", "contents")}
MOST_TEXTS = 200_000  # of one file: what lies behind them is not read


class TextFileError(Exception):
    """A file that cannot be used; the message says what was expected."""


def expected(kind: str) -> str:
    """Say what a file of this kind holds. kind: query or document."""
    names = " or ".join(f'"{name}"' for name in FIELDS[kind])
    return f"one {kind} a line: plain, in .tsv behind the last tab, in .jsonl as a string or as an object with {names}"


def read_texts(path: Path, kind: str) -> list[str]:
    """Read a file in its order, repeats kept; blank lines are none. kind: query or document.

    Raises TextFileError.
    """
    try:
        with path.open(encoding="utf-8") as file:
            texts = list(itertools.islice(_texts(file, path, kind), MOST_TEXTS))
    except OSError as error:
        raise TextFileError(f"{path}: {error.strerror}; expected a file with {expected(kind)}") from None
    except UnicodeDecodeError:
        raise TextFileError(f"{path} is not UTF-8; expected {expected(kind)}") from None
    if not texts:
        raise TextFileError(f"{path} holds no {kind}; expected {expected(kind)}")
    return texts


def _texts(lines: Iterator[str], path: Path, kind: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        text = _text(line, path.suffix, kind)
        if text is None or not text.strip():
            raise TextFileError(f"{path}, line {number}: no {kind} there; expected {expected(kind)}")
        yield text.strip()


def _text(line: str, suffix: str, kind: str) -> str | None:
    if suffix == ".tsv":
        return line.rpartition("\t")[2] if "\t" in line else None
    if suffix != ".jsonl":
        return line
    try:
        value = json.loads(line)
    except ValueError:
        return None
    if isinstance(value, dict):
        value = next((value[name] for name in FIELDS[kind] if name in value), None)
    return value if isinstance(value, str) else None
