"""The Grafana dashboard: its shape, and that whatever it asks for is there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.api.asking import chat_events
from tests.api.monitoring.reading import scraped
from tests.service import Service

FILE = Path(__file__).parents[3] / "docs/grafana/appliance.json"
METRIC = re.compile(r"\b(?:appliance|process|python)_[a-z_]+")
# Grafana's own variables.
BUILT_IN = {"__rate_interval", "__all"}
# Labels that Prometheus adds when it scrapes.
SCRAPED = {"instance", "job"}
MATCHED = re.compile(r"([a-z_]+)\{([^}]*)\}")
LABEL = re.compile(r"([a-z_]+)\s*=~?")
KEPT = re.compile(r"by \(([^)]*)\)")
LISTED = re.compile(r"label_values\(([a-z_]+), ([a-z_]+)\)")


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


def targets() -> list[dict[str, Any]]:
    return [target for panel in dashboard()["panels"] for target in panel.get("targets", [])]


def test_panels_are_placed_and_numbered_and_use_the_chosen_data_source() -> None:
    panels = dashboard()["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
            assert panel["targets"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(target["datasource"]["uid"] == "${datasource}" for target in targets())


def test_every_variable_is_defined() -> None:
    defined = {variable["name"]: variable for variable in dashboard()["templating"]["list"]}
    text = json.dumps([dashboard()["panels"], list(defined.values())])

    assert defined["datasource"]["type"] == "datasource"
    assert set(re.findall(r"\$\{?([A-Za-z_]+)", text)) - BUILT_IN == set(defined)


def test_every_metric_that_is_asked_for_exists(bare_service: Service) -> None:
    with bare_service.http as http:
        there = scraped(http).names()
    variables = [variable.get("definition", "") for variable in dashboard()["templating"]["list"]]
    asked = {name for text in [*variables, *(t["expr"] for t in targets())] for name in METRIC.findall(text)}

    assert len(asked) > 30
    assert asked <= there, asked - there


def test_every_label_that_is_asked_for_exists(service: Service) -> None:
    chat_events(service)  # a call that has a first token
    with service.http as http:
        http.get("/health")
        families = scraped(http).families.values()
    there = {sample.name: SCRAPED | sample.labels.keys() for family in families for sample in family.samples}
    matched, kept = 0, 0
    for target in targets():
        expression, shown = target["expr"], set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")))
        for metric, matchers in MATCHED.findall(expression):
            found = there.get(metric, SCRAPED)  # a series without labels may have no sample yet
            assert set(LABEL.findall(matchers)) <= found, expression
            grouped = {label.strip() for group in KEPT.findall(expression) for label in group.split(",")}
            assert grouped <= found, expression
            assert shown <= (grouped or found), (expression, shown)
            matched, kept = matched + 1, kept + len(grouped)
    for variable in dashboard()["templating"]["list"]:
        for metric, label in LISTED.findall(variable.get("definition", "")):
            assert label in there[metric], variable["name"]
    assert (matched > 40, kept > 15) == (True, True)


def test_every_series_of_ours_has_a_panel(bare_service: Service) -> None:
    with bare_service.http as http:
        families = {name for name in scraped(http).families if name.startswith("appliance_")}
    text = FILE.read_text()

    assert {name for name in families if name not in text} == set()
