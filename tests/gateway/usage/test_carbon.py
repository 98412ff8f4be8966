"""The footprint of a request: the published figures, and the edges of their domain."""

from __future__ import annotations

import pytest

from appliance.gateway.usage.carbon import footprint
from appliance.gateway.usage.record import Footprint
from appliance.gateway.usage.zones import FACTORS, ZONES, factor

VECTORS = [
    ((8, 8, "WOR", 100, 1.0), (1.7673386667e-4, 4.2087146667e-4), (1.0764259457e-4, 2.5180047634e-4)),
    ((8, 8, "FRA", 100, 1.0), (1.7673386667e-4, 4.2087146667e-4), (1.7438760121e-5, 3.6990373335e-5)),
    ((100, 100, "WOR", 30, 0.5), (3.5645269333e-4, 4.2969397333e-4), (2.1212004068e-4, 2.5536740521e-4)),
    ((3, 70, "USA", 250, 60.0), (4.6122925e-4, 1.0718590833e-3), (3.3050492584e-4, 7.4124075154e-4)),
]


@pytest.mark.parametrize(("model", "kwh", "kilograms"), VECTORS)
def test_the_published_figures_are_met(
    model: tuple[float, float, str, int, float], kwh: tuple[float, float], kilograms: tuple[float, float]
) -> None:
    burned = footprint(*model)
    assert (burned.kwh_min, burned.kwh_max) == pytest.approx(kwh, rel=1e-9)
    assert (burned.kgco2eq_min, burned.kgco2eq_max) == pytest.approx(kilograms, rel=1e-9)
    assert not burned.measured


def test_a_missing_number_of_parameters_takes_the_other() -> None:
    both = footprint(8, 8, "WOR", 100, 1.0)
    assert footprint(0, 8, "WOR", 100, 1.0) == both
    assert footprint(8, 0, "WOR", 100, 1.0) == both


def test_nothing_is_burned_without_parameters_or_tokens() -> None:
    assert footprint(0, 0, "WOR", 100, 1.0) == Footprint()
    assert footprint(8, 8, "WOR", 0, 1.0) == Footprint()


def test_a_zone_without_a_figure_emits_as_the_world_does() -> None:
    assert "ABW" in ZONES
    assert "ABW" not in FACTORS
    assert footprint(8, 8, "ABW", 100, 1.0) == footprint(8, 8, "WOR", 100, 1.0)
    assert factor("???") == FACTORS["WOR"]


def test_every_accepted_zone_is_there_once() -> None:
    assert len(ZONES) == 250
    assert len(FACTORS) == 137
    assert all(len(zone) == 3 and zone.isupper() for zone in ZONES)
    assert FACTORS["FRA"] == 0.0800844
    assert FACTORS["ZWE"] == 0.823938


def test_measured_energy_stands_in_place_of_the_estimate() -> None:
    estimated = footprint(8, 8, "FRA", 100, 1.0)
    measured = footprint(8, 8, "FRA", 100, 1.0, measured_kwh=0.001)
    assert measured.measured
    assert measured.kwh_min == measured.kwh_max == 0.001
    embodied = estimated.kgco2eq_min - estimated.kwh_min * FACTORS["FRA"]
    assert measured.kgco2eq_min == pytest.approx(0.001 * FACTORS["FRA"] + embodied, rel=1e-12)
