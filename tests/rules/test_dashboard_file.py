"""The dashboard and its provisioning as Grafana reads them, as far as that can be known without Grafana."""

from __future__ import annotations

import enum
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, get_args, get_type_hints

import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

import dashboard
from servers import REPOSITORY

register_default_plugins()  # the classes of the panels' own options
PROVISIONING = REPOSITORY / "deploy" / "grafana" / "provisioning"
WIDTH = 24
# Of Grafana's Prometheus annotations, but not of its schema.
UNKNOWN = {".annotations.list.0.titleFormat", ".annotations.list.0.textFormat"}


def differences(ours: Any, theirs: Any, place: str = "") -> set[str]:
    """Find the places in ours that are not the same in theirs."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return {found for name in ours for found in differences(ours[name], theirs.get(name, differences), f"{place}.{name}")}
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return {found for number, (a, b) in pairs for found in differences(a, b, f"{place}.{number}")}
    return set() if ours == theirs else {place}


def choices(part: Any) -> Iterator[tuple[type[enum.Enum], Any]]:
    """Yield the values that Grafana's schema has a list of, each with that list, from the schema's classes."""
    if isinstance(part, (list, dict)):
        for each in part.values() if isinstance(part, dict) else part:
            yield from choices(each)
    elif type(part).__module__.startswith(Dashboard.__module__.partition(".")[0]):
        hints = get_type_hints(type(part))
        for name, value in vars(part).items():
            kinds = [kind for kind in (hints.get(name), *get_args(hints.get(name))) if isinstance(kind, enum.EnumType)]
            yield from ((kind, value) for kind in kinds if value is not None)
            yield from choices(value)


def test_grafanas_own_schema_knows_every_field() -> None:
    """Read into the classes that Grafana generates from its schema and written again, nothing is lost or changed."""
    ours = dashboard.load()
    theirs = json.loads(JSONEncoder().encode(Dashboard.from_json(ours)))
    assert differences(ours, theirs) == UNKNOWN


def test_grafanas_own_schema_knows_every_choice() -> None:
    """Wherever it has a list of what a field may be, ours is one of them."""
    found = list(choices(Dashboard.from_json(dashboard.load())))
    assert {"GraphDrawStyle", "VariableType", "ThresholdsMode", "StackingMode"} <= {kind.__name__ for kind, _ in found}
    assert [(kind.__name__, value) for kind, value in found if value not in {each.value for each in kind}] == []


def test_panels_have_ids_of_their_own() -> None:
    """Grafana silently drops one of two."""
    assert max(Counter(panel["id"] for panel in dashboard.load()["panels"]).values()) == 1


def test_panels_do_not_overlap() -> None:
    """Each has its own cells of a grid of 24 columns, and no line of the grid is empty."""
    cells: Counter[tuple[int, int]] = Counter()
    for panel in dashboard.load()["panels"]:
        place = panel["gridPos"]
        columns, lines = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        cells.update((column, line) for column in columns for line in lines)
    assert set(cells.values()) == {1}
    assert {column for column, _ in cells} == set(range(WIDTH))
    assert {line for _, line in cells} == set(range(max(line for _, line in cells) + 1))


def test_every_query_goes_to_the_chosen_prometheus() -> None:
    """Panels, variables and annotations name the variable, so that the dashboard works whatever the data source is called."""
    board = dashboard.load()
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    assert {"type": "datasource", "query": "prometheus"}.items() <= board["templating"]["list"][0].items()
    asking = [panel for panel in board["panels"] if panel["type"] != "row"]
    asking += [*board["templating"]["list"][1:], *board["annotations"]["list"]]
    assert all(each["datasource"] == chosen for each in asking)


def test_every_panel_explains_itself() -> None:
    """It has a title that no other has in its row, a description and a unit."""
    panels = [panel for panel in dashboard.load()["panels"] if panel["type"] != "row"]
    assert all(panel["description"].endswith(".") for panel in panels)
    assert all(panel["fieldConfig"]["defaults"].get("unit") for panel in panels if panel["type"] != "table")
    assert max(Counter((ask.row, ask.panel, ask.legend) for ask in dashboard.asks(rate_interval="1m")).values()) == 1


def test_provisioning_finds_the_dashboard() -> None:
    """One Prometheus, and one provider of the folder that the dashboard is mounted at."""
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "reranker.yml").read_text())["providers"]
    assert (source["type"], source["access"], source["isDefault"]) == ("prometheus", "proxy", True)
    assert (
        source["jsonData"]["timeInterval"]
        == yaml.safe_load((REPOSITORY / "deploy" / "prometheus" / "prometheus.yml").read_text())["global"]["scrape_interval"]
    )
    assert provider["type"] == "file"
    assert PurePosixPath(provider["options"]["path"]).name == dashboard.PATH.parent.name
