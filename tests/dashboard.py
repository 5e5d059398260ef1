"""The Grafana dashboard as a file: its panels and what they ask Prometheus."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from servers import REPOSITORY

PATH = REPOSITORY / "deploy" / "grafana" / "dashboards" / "reranker.json"


@dataclass(frozen=True, slots=True)
class Ask:
    """One query of a panel. row: the title that the panel stands under · legend: with Grafana's `{{label}}`."""

    row: str
    panel: str
    legend: str
    query: str


def load() -> dict[str, Any]:
    """Read the file."""
    board: dict[str, Any] = json.loads(PATH.read_text())
    return board


def filled(query: str, *, rate_interval: str) -> str:
    """Put values into a query's variables as Grafana does when all servers are chosen."""
    every = {variable["name"]: variable["allValue"] for variable in load()["templating"]["list"] if "allValue" in variable}
    for name, value in (every | {"__rate_interval": rate_interval}).items():
        query = query.replace(f"${name}", value)
    assert "$" not in query, f"a variable without a value: {query}"
    return query


def asks(*, rate_interval: str) -> Iterator[Ask]:
    """Yield every query, its variables filled in, in the order of the panels."""
    row = ""
    for panel in load()["panels"]:
        row = panel["title"] if panel["type"] == "row" else row
        for target in panel.get("targets", ()):
            yield Ask(row, panel["title"], target["legendFormat"], filled(target["expr"], rate_interval=rate_interval))
