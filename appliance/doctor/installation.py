"""Checks of the service's own things: data directory, secret, port, packs."""

from __future__ import annotations

from appliance.accounts.secret import SECRET_BYTES
from appliance.config import Settings
from appliance.doctor.findings import Finding, Level
from appliance.doctor.machine import Machine
from appliance.packs.errors import PackError
from appliance.packs.meter import Progress
from appliance.packs.store import InstalledPack, PackStore


def check_data_dir(settings: Settings, machine: Machine) -> Finding:
    """Check that the data directory is there, ours, writable and private."""
    path = settings.data_dir

    def finding(level: Level, detail: str, remedy: str = "") -> Finding:
        return Finding(check="data-dir", level=level, title="Data directory", detail=detail, remedy=remedy)

    directory = machine.data_dir
    if directory is None:
        if machine.data_dir_writable:
            return finding("ok", f"{path} will be made at the first start")
        return finding(
            "error",
            f"{path} does not exist and may not be made by this user.",
            f"Make it and give it to the service's user: install -d -m 0700 -o USER {path}",
        )
    if not directory.is_directory:
        return finding("error", f"{path} is not a directory.", "Move it away, or set APPLIANCE_DATA_DIR.")
    if machine.user not in (0, directory.owner):
        return finding(
            "error",
            f"{path} belongs to user {directory.owner}, this is user {machine.user}.",
            "Run this as root or as the service's user.",
        )
    if not machine.data_dir_writable:
        return finding(
            "error", f"{path} is not writable.", "Check its permissions, and that its disk is not read-only."
        )
    strangers = [file.path.name for file in machine.data_files if file.owner != directory.owner]
    if strangers:
        return finding(
            "error",
            f"{', '.join(strangers[:5])} in {path} belong{'s' if len(strangers) == 1 else ''} to another user "
            "than the directory: the service may not read or replace them.",
            f"chown -R --reference={path} {path}",
        )
    if directory.mode & 0o007:
        return finding("warning", f"Every user of this machine can look into {path}.", f"chmod o-rwx {path}")
    return finding("ok", str(path))


def check_secret(settings: Settings, machine: Machine) -> Finding:
    """Check that the box's secret is whole and readable by the service only."""
    path = settings.secret_path

    def finding(level: Level, detail: str, remedy: str = "") -> Finding:
        return Finding(check="secret", level=level, title="Secret", detail=detail, remedy=remedy)

    secret = machine.secret or next((file for file in machine.data_files if file.path == path), None)
    if secret is None and settings.secret_file is None and machine.credential:
        return finding("ok", "systemd gives it to the service as a credential")
    if secret is None:
        if any(file.path == settings.database_path for file in machine.data_files):
            return finding(
                "error",
                f"{path} is gone, the stores are there: no key would be accepted.",
                "Restore it from a backup; or delete all keys by starting with an empty data directory.",
            )
        return finding("ok", "will be made at the first start")
    if secret.mode & 0o077:
        return finding(
            "error", f"{path} can be read by others (mode {secret.mode:04o}).", f"chmod 600 {path}"
        )
    if secret.size != SECRET_BYTES:
        return finding(
            "error", f"{path} has {secret.size} bytes instead of {SECRET_BYTES}.", "Restore it from a backup."
        )
    return finding("ok", "present, readable by its owner only")


def check_port(settings: Settings, machine: Machine) -> Finding:
    """Check that the service can listen, or does."""
    address = f"{settings.host}:{settings.port}"
    other = "Set another port (APPLIANCE_PORT)"

    def finding(level: Level, detail: str, remedy: str = "") -> Finding:
        return Finding(check="port", level=level, title="Port", detail=detail, remedy=remedy)

    match machine.port:
        case "free":
            return finding("ok", f"{address} is free")
        case "ours":
            return finding("ok", f"the service listens on port {settings.port}")  # where, its socket says
        case "taken":
            return finding(
                "error",
                f"Another program listens on {address} (or the service, with another data directory).",
                f"{other}, or stop that program; to find it: ss -ltnp 'sport = :{settings.port}'",
            )
        case "forbidden":
            return finding(
                "error",
                f"This user may not listen on {address}.",
                f"{other} of 1024 or more, or give the unit AmbientCapabilities=CAP_NET_BIND_SERVICE.",
            )
        case "not here":
            return finding(
                "error",
                f"{settings.host} is no address of this machine.",
                "Set APPLIANCE_HOST to one, or 0.0.0.0.",
            )
        case "unknown":
            return finding(
                "warning",
                f"A program listens on {address}; whether it is the service cannot be seen by this user.",
                "Run this as root or as the service's user.",
            )


def check_packs(store: PackStore, *, verify: bool, progress: Progress | None = None) -> list[Finding]:
    """Check that there are packs and that each is complete; with ``verify``, every byte of them."""
    try:
        packs = store.list()
    except PackError as error:
        return [
            Finding(
                check="packs",
                level="error",
                title="Packs",
                detail=f"The packs cannot be read: {error.message}.",
                remedy="Check the permissions of the data directory.",
            )
        ]
    if not packs:
        return [
            Finding(
                check="packs",
                level="warning",
                title="Packs",
                detail="No model packs are installed: there is nothing to serve.",
                remedy="Install one: appliance pack install FILE_OR_DIR",
            )
        ]
    return [_check_pack(store, pack, verify=verify, progress=progress) for pack in packs]


def _check_pack(store: PackStore, pack: InstalledPack, *, verify: bool, progress: Progress | None) -> Finding:
    problem = pack.problem
    if verify and problem is None:
        try:
            store.verify(pack.name, progress)
        except PackError as error:
            problem = error.message
    if problem is not None:
        return Finding(
            check=f"pack:{pack.name}",
            level="error",
            title=f"Pack {pack.name}",
            detail=f"The pack is not whole: {problem}.",
            remedy="Install it again (appliance pack install FILE_OR_DIR), or remove it (appliance pack remove NAME).",
        )
    whole = "every byte verified" if verify else "complete"
    return Finding(check=f"pack:{pack.name}", level="ok", title=f"Pack {pack.name}", detail=whole)
