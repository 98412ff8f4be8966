"""Sums of usage by quarter of an hour: what the table ``usage_quarters`` does with a row that it has already."""

from __future__ import annotations

ADD_TO_SUMS = """
ON CONFLICT (user_id, quarter, model, endpoint) DO UPDATE SET
    requests = requests + excluded.requests,
    failures = failures + excluded.failures,
    prompt_tokens = prompt_tokens + excluded.prompt_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens,
    cost = cost + excluded.cost,
    kwh_min = kwh_min + excluded.kwh_min,
    kwh_max = kwh_max + excluded.kwh_max,
    kgco2eq_min = kgco2eq_min + excluded.kgco2eq_min,
    kgco2eq_max = kgco2eq_max + excluded.kgco2eq_max
"""
