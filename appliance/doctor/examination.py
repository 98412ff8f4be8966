"""All checks, in the order they are read."""

from __future__ import annotations

from appliance.config import Settings
from appliance.doctor.backups import check_backups
from appliance.doctor.findings import Finding
from appliance.doctor.hardware import check_cores, check_cpu, check_disk, check_memory
from appliance.doctor.installation import check_data_dir, check_packs, check_port, check_secret
from appliance.doctor.machine import Machine
from appliance.doctor.software import check_clock, check_libc, check_open_files, check_sqlite
from appliance.packs.errors import PackError
from appliance.packs.manifest import Manifest
from appliance.packs.meter import Progress
from appliance.packs.store import PackStore


def examine(
    settings: Settings,
    machine: Machine,
    *,
    verify: bool = False,
    progress: Progress | None = None,
) -> tuple[Finding, ...]:
    """Run every check on what ``examine_machine`` found. ``verify`` also hashes the installed packs."""
    store = PackStore(settings.packs_dir)
    return (
        check_cpu(machine),
        check_cores(machine),
        check_memory(machine, _manifests(store)),
        check_disk(machine),
        check_libc(machine),
        check_sqlite(machine),
        check_clock(machine),
        check_open_files(machine),
        check_data_dir(settings, machine),
        check_secret(settings, machine),
        check_port(settings, machine),
        check_backups(settings, machine.now),
        *check_packs(store, verify=verify, progress=progress),
    )


def _manifests(store: PackStore) -> tuple[Manifest, ...]:
    try:
        return tuple(pack.manifest for pack in store.list() if pack.manifest is not None)
    except PackError:  # check_packs says so
        return ()
