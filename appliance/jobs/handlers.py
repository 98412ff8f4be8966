"""The kinds of background jobs."""

from __future__ import annotations

from appliance.config import Settings
from appliance.jobs.pack_installation import KIND, pack_installation
from appliance.jobs.runner import Handler
from appliance.network.egress import EgressPolicy
from appliance.packs.store import PackStore
from appliance.signing.trust import trust_store


def job_handlers(packs: PackStore, settings: Settings) -> dict[str, Handler]:
    """Return the handler of every kind of job. Raises EgressError for a network setting that is none."""
    policy = EgressPolicy(settings.egress_networks, settings.trusted_authorities)
    return {KIND: pack_installation(packs, trust_store(settings), settings.spool_dir, policy)}
