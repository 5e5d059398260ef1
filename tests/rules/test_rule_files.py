"""The rules and the dashboard name metrics, routes and places that exist, and every rule has a unit test."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import dashboard
from bento_service.edge import GET_ROUTES, POST_ROUTES
from prometheus_server import CONFIGURATION
from servers import REPOSITORY

RULES = [
    rule
    for path in sorted((CONFIGURATION / "rules").glob("*.yml"))
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
EXPRESSIONS = [rule["expr"] for rule in RULES] + [ask.query for ask in dashboard.asks(rate_interval="1m")]
SEVERITIES = {"critical", "warning", "info"}


def named(rule: dict[str, Any]) -> str:
    """Return what an alert is called."""
    return str(rule["alert"])


def test_every_metric_is_documented() -> None:
    """docs/metrics.md has a row for each, and a test holds that table against the service."""
    rows = re.findall(r"^\| (`reranker_.+?) \|", (REPOSITORY / "docs" / "metrics.md").read_text(), re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"reranker_\w+", row)}
    used = {name for text in EXPRESSIONS for name in re.findall(r"(?<![\w:])reranker_\w+", text)}
    bare = {name if name in documented else re.sub(r"_(bucket|sum|count)$", "", name) for name in used}
    assert bare - documented == set()


def test_every_recorded_name_exists() -> None:
    """Alerts and panels ask for nothing that no rule records, and nothing is recorded in vain."""
    used = {name for text in EXPRESSIONS for name in re.findall(r"instance:[\w:]+", text)}
    assert used == RECORDED


def test_routes_are_those_that_score() -> None:
    """Wherever an expression chooses routes, it takes the POST routes and none of the others."""
    patterns = {pattern for text in EXPRESSIONS for pattern in re.findall(r'route=~"([^"]+)"', text)}
    assert patterns
    for pattern in patterns:
        assert {route for route in {*POST_ROUTES, *GET_ROUTES, "other"} if re.fullmatch(pattern, route)} == POST_ROUTES


@pytest.mark.parametrize("alert", ALERTS, ids=named)
def test_an_alert_says_what_to_do(alert: dict[str, Any]) -> None:
    """It has a severity, a summary, a description, and a runbook under a heading that is there."""
    assert alert["labels"]["severity"] in SEVERITIES
    assert alert["annotations"].keys() == {"summary", "description", "runbook"}
    path, _, anchor = alert["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (REPOSITORY / path).read_text(), re.MULTILINE)
    assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_every_alert_is_documented() -> None:
    """docs/metrics.md has a row for each, with its severity."""
    rows = re.findall(r"^\| `(Reranker\w+)` \| (\w+) \|", (REPOSITORY / "docs" / "metrics.md").read_text(), re.MULTILINE)
    assert rows == [(alert["alert"], alert["labels"]["severity"]) for alert in ALERTS]


def test_every_rule_has_a_unit_test() -> None:
    """Each recorded name has a value somewhere, and each alert fires somewhere."""
    tested = "\n".join(
        f"{case['expr']} {sample['labels']}"
        for path in sorted(Path(__file__).parent.glob("*.yml"))
        for test in yaml.safe_load(path.read_text())["tests"]
        for case in test["promql_expr_test"]
        for sample in case["exp_samples"]
    )
    assert [name for name in RECORDED if not re.search(rf"(?<![\w:]){name}(?![\w:])", tested)] == []
    assert [alert["alert"] for alert in ALERTS if f'alertname="{alert["alert"]}", alertstate="firing"' not in tested] == []
