"""A bare Debian 12: the essential packages, systemd and D-Bus, from the mirror that this machine's apt uses.

No zstd, no minisign, no openssl, no Python, no curl: what is missing on the poorest box is missing here.
The root is made once and kept in the user's cache folder; every run works on a copy.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from model_packs.cache import default_cache
from tests.airgap.box.shell import BoxError, run

SUITE = "bookworm"
PACKAGES = "systemd,systemd-sysv,dbus"
# Debian's own errands would try the network: here a packet must be ours.
ERRANDS = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "systemd-networkd.service",
    "systemd-timesyncd.service",
)


def mirror() -> str:
    """Return the Debian mirror of this machine's apt; raises BoxError where it knows none for Debian 12."""
    lines = run(
        "apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(COMPONENT)", "Identifier: Packages"
    ).stdout
    for line in lines.splitlines():
        address, codename, component = line.split()
        if codename == SUITE and component == "main":
            return address
    raise BoxError(f"this machine's apt knows no mirror of Debian {SUITE}")


def cached_root() -> Path:
    """Return the folder of a bare Debian 12, made when it is not there yet."""
    root = default_cache() / "debian" / f"{SUITE}-{PACKAGES.replace(',', '-')}"
    if root.is_dir():
        return root
    building = root.with_name(f".{root.name}.{os.getpid()}")
    building.parent.mkdir(parents=True, exist_ok=True)
    proxy = run("sh", "-c", "apt-config shell p Acquire::http::Proxy").stdout.strip()
    try:
        run(
            *("sh", "-c", f'{proxy}; ${{p:+env http_proxy="$p"}} exec debootstrap "$@"', "debootstrap")
            if proxy
            else ("debootstrap",),
            "--variant=minbase",
            f"--include={PACKAGES}",
            SUITE,
            str(building),
            mirror(),
            timeout=1800,
        )
        strip(building)
        building.rename(root)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return root


def strip(root: Path) -> None:
    """Make of ``root`` what a box in the rack is: nobody's address in it, and no errand that needs a network."""
    (root / "etc" / "apt" / "sources.list").write_text("")
    for listing in (root / "var" / "lib" / "apt" / "lists").glob("*_*"):
        listing.unlink()
    for archive in (root / "var" / "cache" / "apt" / "archives").glob("*.deb"):
        archive.unlink()
    (root / "etc" / "machine-id").write_text("")
    (root / "etc" / "hostname").write_text("box\n")
    (root / "etc" / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 box\n")
    for name in ERRANDS:
        unit = root / "etc" / "systemd" / "system" / name
        unit.unlink(missing_ok=True)
        unit.symlink_to("/dev/null")
    # The journal must survive the pulled plug: it is what we read afterwards.
    (root / "var" / "log" / "journal").mkdir(exist_ok=True)


def fresh_root(folder: Path, resolver: str) -> Path:
    """Copy the cached root into ``folder``; look-ups there go to the address ``resolver``."""
    root = folder / "root"
    run("cp", "-a", "--reflink=auto", str(cached_root()), str(root))
    (root / "etc" / "resolv.conf").unlink(missing_ok=True)
    (root / "etc" / "resolv.conf").write_text(f"nameserver {resolver}\noptions timeout:1 attempts:1\n")
    return root
