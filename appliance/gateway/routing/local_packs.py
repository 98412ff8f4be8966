"""Every installed pack is a router with a local provider, with no set-up."""

from __future__ import annotations

from collections.abc import Iterable

import sqlite_utils

from appliance.audit.log import SERVICE, AuditLog
from appliance.clock import now_ms
from appliance.gateway.routing.records import MODEL_TYPES
from appliance.packs.manifest import Manifest

BILLION = 1e9


def route_packs(
    db: sqlite_utils.Database, audit: AuditLog, manifests: Iterable[Manifest], hosting_zone: str
) -> bool:
    """Give a router to each installed pack that never had one, inside a write task; return whether any was made.

    A pack that is removed keeps its router, with its prices and limits, for when it comes back; it is not
    shown meanwhile. A router that an administrator deleted stays deleted until the pack is removed and
    installed again.
    """
    installed = {manifest.name: manifest for manifest in manifests}
    routed = {row["pack"] for row in db.query("SELECT pack FROM routed_packs")}
    provided = {
        row["model_name"] for row in db.query("SELECT model_name FROM providers WHERE type = 'local'")
    }
    for gone in routed - installed.keys() - provided:
        db.execute("DELETE FROM routed_packs WHERE pack = ?", [gone])
    made = False
    for name in sorted(installed.keys() - routed):
        now = now_ms()
        db.execute("INSERT INTO routed_packs VALUES (?, ?)", [name, now])
        taken = db.execute("SELECT 1 FROM router_names WHERE name = ?", [name]).fetchone()
        if name in provided or taken:
            continue
        _route(db, installed[name], hosting_zone, now)
        audit.append(db, SERVICE, "router.create", name, {"pack": name})
        made = True
    return made


def _route(db: sqlite_utils.Database, manifest: Manifest, hosting_zone: str, now: int) -> None:
    router = db.execute(
        "INSERT INTO routers (type, created_at, updated_at) VALUES (?, ?, ?)",
        [MODEL_TYPES[manifest.task], now, now],
    ).lastrowid
    db.execute("INSERT INTO router_names VALUES (?, ?, 0)", [manifest.name, router])
    billions = parameters(manifest)
    db.execute(
        "INSERT INTO providers (router_id, type, model_name, hosting_zone, total_params, active_params, "
        "max_context_length, vector_size, created_at) VALUES (?, 'local', ?, ?, ?, ?, ?, ?, ?)",
        [
            router,
            manifest.name,
            hosting_zone,
            billions,
            billions,
            manifest.context_length or None,
            vector_size(manifest),
            now,
        ],
    )


def parameters(manifest: Manifest) -> float:
    """Return the parameters of a pack's model in billions."""
    return manifest.parameters / BILLION


def vector_size(manifest: Manifest) -> int | None:
    """Return the dimensions of a pack's embeddings, None when it makes none."""
    if manifest.task != "embedding" or manifest.encoder is None:
        return None
    return manifest.encoder.dimensions
