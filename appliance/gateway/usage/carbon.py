"""What a request burned, by the formulas of EcoLogits 0.8.2 (OpenGateLLM's contract, section 4.7)."""

from __future__ import annotations

from appliance.gateway.usage.record import Footprint


def footprint(
    active_params: float, total_params: float, zone: str, tokens: int, latency_seconds: float
) -> Footprint:
    """Estimate for a model of so many billion parameters, hosted in ``zone`` (ISO 3166-1 alpha-3, or WOR)."""
    return Footprint()
