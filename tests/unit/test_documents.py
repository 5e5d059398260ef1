"""The documents say what is: settings, errors, routes, metrics."""

from __future__ import annotations

import re

from parts import metric_names

import readme_settings
from bento_service.dialects.objects import NATIVE
from bento_service.edge import GET_ROUTES, POST_ROUTES
from bento_service.errors import RequestError
from bento_service.metrics import EntryMetrics, ScorerMetrics
from bento_service.openapi import _tree
from bento_service.settings import REFUSED, known_variables

README = readme_settings.README.read_text()


def test_the_settings_table_is_the_settings_class() -> None:
    """`make readme` has been run since the last change."""
    assert readme_settings.written() == readme_settings.table()


def test_every_refused_variable_is_named() -> None:
    """A person who sets one finds out why before the start tells them."""
    assert [name for name in REFUSED if f"`{name}`" not in README] == []


def test_every_error_code_is_documented() -> None:
    """Codes of classes, and codes given where an error is raised."""
    codes = {error.code for error in _tree(RequestError)}
    for path in (readme_settings.REPOSITORY / "bento_service").rglob("*.py"):
        codes |= set(re.findall(r'code="([a-z_]+)"', path.read_text()))
    assert [code for code in sorted(codes) if f"`{code}`" not in README] == []
    assert NATIVE.error(RequestError("x"))[1]["error"]["code"] == "internal_error"


def test_every_route_is_documented() -> None:
    """In the README's table; /schema.json is BentoML's own and for its clients."""
    missing = [
        route
        for route in sorted(POST_ROUTES | GET_ROUTES - {"/schema.json"})
        if f"`{route}`" not in README and f" {route}`" not in README
    ]
    assert missing == []


def test_every_metric_is_documented() -> None:
    """Names in the code are the names in the table of docs/metrics.md, and none stands there that is not told."""
    told = {
        name
        for room in ("metrics", "exposition", "machine")
        for name in re.findall(r'"(reranker_[a-z_]+)"', (readme_settings.REPOSITORY / "bento_service" / f"{room}.py").read_text())
    }
    rows = re.findall(r"^\|([^|]+)\|", (readme_settings.REPOSITORY / "docs" / "metrics.md").read_text(), re.MULTILINE)
    assert told == {name for row in rows for name in re.findall(r"`(reranker_[a-z_]+)`", row)}
    counted = [name for kind in (EntryMetrics, ScorerMetrics) for name in metric_names(kind)]
    read = 2 + 3 + 3  # Scorers, processes, GPUs
    assert len(told) == len(counted) + read


def test_every_setting_says_what_it_does() -> None:
    """A description of at least a few words."""
    assert len(known_variables()) == len(set(known_variables()))
    assert all(len(row.split("|")[3].split()) >= 5 for row in readme_settings.table().splitlines()[2:])
