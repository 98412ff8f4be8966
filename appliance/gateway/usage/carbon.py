"""What a request burned, by the formulas of EcoLogits 0.8.2 (OpenGateLLM's contract, section 4.7).

They assume 4-bit weights on cards of 80 GB, eight to a server; ranges are 95 % intervals of the fits.
"""

from __future__ import annotations

import math

from appliance.gateway.usage.record import Footprint
from appliance.gateway.usage.zones import factor

# Of the fits over the billions of active parameters: slope, intercept, and half the interval's width.
GPU_KWH_PER_TOKEN = (8.91e-8, 1.43e-6, 1.96 * 5.19e-7)
SECONDS_PER_TOKEN = (8.02e-4, 2.23e-2, 1.96 * 7.00e-6)

MEMORY_OVERHEAD = 1.2
BYTES_PER_PARAMETER = 4 / 8
CARD_GIGABYTES = 80
CARDS_PER_SERVER = 8
SERVER_KW = 1.0
DATACENTER_OVERHEAD = 1.2

LIFETIME_SECONDS = 157_680_000
SERVER_EMBODIED_KG = 3000
CARD_EMBODIED_KG = 143


def footprint(
    active_params: float,
    total_params: float,
    zone: str,
    tokens: int,
    latency_seconds: float,
    measured_kwh: float | None = None,
) -> Footprint:
    """Estimate for a model of so many billion parameters, hosted in ``zone`` (ISO 3166-1 alpha-3, or WOR).

    A number of parameters that is 0 takes the other's value. Energy that was measured stands in place of the
    estimate; what making the hardware emitted is estimated all the same.
    """
    active, total = active_params or total_params, total_params or active_params
    cards = math.ceil(MEMORY_OVERHEAD * total * BYTES_PER_PARAMETER / CARD_GIGABYTES)
    busy = _seconds(active, tokens, latency_seconds)
    embodied = [
        seconds
        / LIFETIME_SECONDS
        * (cards / CARDS_PER_SERVER * SERVER_EMBODIED_KG + cards * CARD_EMBODIED_KG)
        for seconds in busy
    ]
    if measured_kwh is not None:
        energy = [measured_kwh, measured_kwh]
    else:
        energy = [
            DATACENTER_OVERHEAD
            * (seconds / 3600 * SERVER_KW * cards / CARDS_PER_SERVER + cards * tokens * kwh)
            for seconds, kwh in zip(busy, _range(GPU_KWH_PER_TOKEN, active), strict=True)
        ]
    emitted = [kwh * factor(zone) + kg for kwh, kg in zip(energy, embodied, strict=True)]
    return Footprint(
        kwh_min=energy[0],
        kwh_max=energy[1],
        kgco2eq_min=emitted[0],
        kgco2eq_max=emitted[1],
        measured=measured_kwh is not None,
    )


def _seconds(active: float, tokens: int, latency: float) -> tuple[float, float]:
    """Return the least and the most seconds that the tokens take; never more than the request did."""
    least, most = (tokens * seconds for seconds in _range(SECONDS_PER_TOKEN, active))
    return (latency, latency) if most >= latency else (least, most)


def _range(fit: tuple[float, float, float], active: float) -> tuple[float, float]:
    slope, intercept, half = fit
    middle = slope * active + intercept
    return max(0.0, middle - half), middle + half
