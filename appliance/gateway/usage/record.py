"""One record per request that reached a model, and the footprint in it."""

from __future__ import annotations

from typing import Any

import msgspec

FOOTPRINT_COLUMNS = ("kwh_min", "kwh_max", "kgco2eq_min", "kgco2eq_max")


class Footprint(msgspec.Struct, frozen=True):
    """Energy in kWh and emissions in kg of CO2 equivalents, from the least to the most likely."""

    kwh_min: float = 0.0
    kwh_max: float = 0.0
    kgco2eq_min: float = 0.0
    kgco2eq_max: float = 0.0
    # Whether the energy was measured on this machine, not estimated.
    measured: bool = False


class UsageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A finished request; the columns of the table ``usage``. Cost in millionths, times in (UTC) milliseconds."""

    created_at: int
    user_id: int
    email: str
    key_id: int
    key_name: str
    router_id: int
    model: str
    provider_id: int
    provider_model: str
    endpoint: str
    method: str
    status: int
    latency_ms: int
    ttft_ms: int | None
    prompt_tokens: int
    completion_tokens: int
    cost: int
    footprint: Footprint


def record_of(row: dict[str, Any]) -> UsageRecord:
    """Return the record in a row of the table ``usage``."""
    energy = {name: row[name] for name in FOOTPRINT_COLUMNS}
    burned = Footprint(**energy, measured=bool(row["measured"]))
    names = [name for name in UsageRecord.__struct_fields__ if name != "footprint"]
    return UsageRecord(**{name: row[name] for name in names}, footprint=burned)
