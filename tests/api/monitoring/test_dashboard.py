"""The Grafana dashboard: its shape, and that whatever it asks for is there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.api.monitoring.reading import scraped
from tests.service import Service

FILE = Path(__file__).parents[3] / "docs/grafana/appliance.json"
METRIC = re.compile(r"\b(?:appliance|process|python)_[a-z_]+")
# Grafana's own variables.
BUILT_IN = {"__rate_interval", "__all"}


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


def test_every_series_of_ours_has_a_panel(bare_service: Service) -> None:
    with bare_service.http as http:
        families = {name for name in scraped(http).families if name.startswith("appliance_")}
    text = FILE.read_text()

    assert {name for name in families if name not in text} == set()
