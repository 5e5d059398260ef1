"""What Prometheus answers after a real run: to each panel of the dashboard, to each recording rule, and which alerts fired."""

from __future__ import annotations

import pytest
import yaml
from real_run import FIRE, SLOW

import dashboard
from prometheus_server import CONFIGURATION, SCRAPE_SECONDS, PrometheusServer

ASKS = list(dashboard.asks(rate_interval=f"{4 * SCRAPE_SECONDS}s"))  # as Grafana's is of the scrape interval
# The rows that only a machine with an NVML GPU fills.
GPU_ROWS = {"GPU"}
# What this run has none of, so that the series are there and are 0: no failures, and the built-in model runs without padding.
ZERO = {
    ("Errors", "Errors"),
    ("Batches", "out-of-memory retries"),
    ("Model workers", "fallbacks"),
    ("Model workers", "draining"),
    ("Padding", "{{instance}}"),
}
RECORDED = [
    rule["record"]
    for group in yaml.safe_load((CONFIGURATION / "rules" / "recording.yml").read_text())["groups"]
    for rule in group["rules"]
]


@pytest.mark.parametrize("ask", [ask for ask in ASKS if ask.row not in GPU_ROWS], ids=lambda ask: f"{ask.panel}: {ask.legend}")
def test_a_panel_has_data(prometheus: PrometheusServer, ask: dashboard.Ask) -> None:
    """Every query has values, and more than zeros but where nothing went wrong; its legend names labels that it has."""
    found = prometheus.series(ask.query)
    assert found
    assert any(value > 0 for values in found.values() for _, value in values) or (ask.panel, ask.legend) in ZERO
    names = {part.split("}}")[0] for part in ask.legend.split("{{")[1:]}
    assert all(names <= {name for name, _ in labels} for labels in found)


def test_only_the_gpu_is_left_out() -> None:
    """Its rows ask for nothing but GPU metrics, and no other row does."""
    assert {ask.row for ask in ASKS if "reranker_gpu_" in ask.query} == GPU_ROWS
    assert all("reranker_gpu_" in ask.query for ask in ASKS if ask.row in GPU_ROWS)


def test_the_variables_list_jobs_and_servers(prometheus: PrometheusServer) -> None:
    """label_values() of each finds the one that there is."""
    for variable in dashboard.load()["templating"]["list"]:
        if variable["type"] == "query":
            inner = variable["query"]["query"].removeprefix("label_values(").removesuffix(")")
            match, _, label = inner.rpartition(", ")
            match = dashboard.filled(match, rate_interval="4s")
            assert len(prometheus.ask(f"label/{label}/values", **{"match[]": match})) == 1


def test_the_annotations_show_what_fired(prometheus: PrometheusServer) -> None:
    """The dashboard marks the alerts on every graph."""
    (annotation,) = dashboard.load()["annotations"]["list"]
    found = prometheus.series(dashboard.filled(annotation["expr"], rate_interval="4s"))
    assert "RerankerQueueFull" in {dict(labels)["alertname"] for labels in found}


@pytest.mark.parametrize("name", RECORDED)
def test_a_recording_rule_yields_data(prometheus: PrometheusServer, name: str) -> None:
    """And none of it is NaN."""
    assert len(prometheus.series(name)) == 1
    assert prometheus.series(f"count({name} != {name})") == {}  # NaN alone is not itself


def test_the_alerts_that_should_have_fired_did(prometheus: PrometheusServer) -> None:
    """The queue was full, Redis away, and the cache too small; nothing else happened."""
    # Those of a server: before Prometheus has read its targets there is none, which is an alert too.
    fired = {dict(labels)["alertname"] for labels in prometheus.series('ALERTS{alertstate="firing", instance!=""}')}
    assert fired - SLOW == FIRE


def test_every_rule_is_healthy(prometheus: PrometheusServer) -> None:
    """None failed when it was last evaluated, and no annotation of a firing alert has an error in it."""
    rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"]: rule.get("lastError", "") for rule in rules if rule["health"] != "ok"} == {}
    told = [text for alert in prometheus.ask("alerts")["alerts"] for text in alert["annotations"].values()]
    assert told
    assert not [text for text in told if "error" in text and "expanding" in text]
