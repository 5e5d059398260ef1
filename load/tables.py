"""Tables in markdown, and how a precision is called in them."""

from __future__ import annotations

from collections.abc import Iterable


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Write a table as lines, an empty one last."""
    titles = list(head)
    return ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles), *("| " + " | ".join(row) + " |" for row in rows), ""]


def precision_name(quantization: str) -> str:
    """Name a precision for people: `none` is what the weights came in."""
    return "fp32" if quantization == "none" else quantization
