"""Pulling the plug: SIGKILL to the whole container at many instants of upgrades, backups and restores.

Afterwards the box must boot, serve one of the two releases (or packs, or stores) with everything that it ever
acknowledged of it, and take writes. Nothing half done is left; the command that was cut off does its work when it is
given again. Of backups there are only whole ones, the older ones among them. While the service runs, a writer writes.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable
from operator import itemgetter
from pathlib import Path

from appliance.backup.manifest import STORE
from appliance.storage.sqlite import connect
from tests.airgap.box.appliance import JOURNAL, Appliance
from tests.airgap.box.goods import FIRST, SECOND, Goods
from tests.airgap.box.machine import Box
from tests.airgap.box.network import Networks
from tests.airgap.box.pack_goods import PACK, PackGoods
from tests.airgap.box.pulling import (
    Instant,
    Work,
    Writer,
    booted,
    copy_of,
    instants,
    measure,
    pull_plug_during,
)
from tests.airgap.box.shell import BoxError

DATA = "var/lib/appliance"
BACKUPS = f"/{DATA}/backups"
BEFORE_RESTORE = f"{DATA}.before-restore-*"
CHAT = {"model": "smollm2-135m-instruct", "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}
SETTLE_SECONDS = 60
KINDS = ("release", "pack", "backup", "restore")


def pull_plugs(
    box: Box, nets: Networks, goods: Goods, folder: Path, points: int, kinds: Iterable[str] = KINDS
) -> None:
    """Install once, then pull the plug ``points`` times in the work of each of the ``kinds``."""
    on = Appliance(box, nets, folder)
    on.install(goods)
    on.set_up()
    on.wait_until_ready()
    on.mark("at first")
    release = f"appliance upgrade {on.carry_bundle(goods.second)}"
    pack = f"appliance upgrade {on.carry_bundle(goods.packs.newer)}"
    box.pull_plug()
    print("installed; every run below starts from this box", flush=True)
    if "release" in kinds:
        _releases(on, release, points)
    if "pack" in kinds:
        _packs(on, pack, goods.packs, points)
    with copy_of(on, box.root, folder) as copy:
        if "backup" in kinds:
            _backups(copy, points)
        if "restore" in kinds:
            _restores(copy, points)


def _releases(on: Appliance, command: str, points: int) -> None:
    work = Work(command, (("the switch", JOURNAL),))

    def require_done(copy: Appliance) -> None:
        if copy.release() != SECOND:
            raise BoxError("the undisturbed upgrade failed")

    def once(copy: Appliance, instant: Instant) -> str:
        writer = Writer(copy, f"release {instant}")
        with booted(copy):
            with writer.writing():
                where = pull_plug_during(copy, work, instant)
            boot = _boot(copy)
            release = _require_whole(copy, writer.name, writer.acknowledged)
        return f"{where}; {boot}, release {release}, {len(writer.acknowledged)} writes kept"

    _each_from_the_same_box(on, "release", work, points, require_done, once)


def _packs(on: Appliance, command: str, goods: PackGoods, points: int) -> None:
    work = Work(
        command,
        (
            ("the copy", f"{DATA}/spool/import-*"),
            ("the smoke test", f"{DATA}/.upgrade-trial-*"),
            ("the installation", f"{DATA}/packs/.staging-*"),
            ("the trial", f"{DATA}/packs/.previous-*"),
        ),
    )

    def require_done(copy: Appliance) -> None:
        copy.require_pack(PACK, goods.newer_version)
        _require_nothing_half(copy)
        way_back = f"{PACK} {goods.newer_version}, before it {goods.version}"
        status = copy.appliance("upgrade --status").stdout
        if way_back not in status:
            raise BoxError(f"the version to go back to is not named:\n{status}")

    def once(copy: Appliance, instant: Instant) -> str:
        writer = Writer(copy, f"pack {instant}")
        with booted(copy):
            with writer.writing():
                where = pull_plug_during(copy, work, instant)
            boot = _boot(copy)
            _require_nothing_half(copy)
            version = copy.pack_version(PACK)
            if version not in (goods.version, goods.newer_version):
                raise BoxError(f"the box has {PACK} {version}")
            copy.require_pack(PACK, version)
            _require_whole(copy, writer.name, writer.acknowledged)
            copy.box.sh(command)
            require_done(copy)
        return f"{where}; {boot}, version {version}; upgraded when told again"

    _each_from_the_same_box(on, "pack", work, points, require_done, once)


def _each_from_the_same_box(
    on: Appliance,
    name: str,
    work: Work,
    points: int,
    require_done: Callable[[Appliance], None],
    once: Callable[[Appliance, Instant], str],
) -> None:
    base = on.box.root
    with copy_of(on, base, on.folder) as copy, booted(copy):
        # While a client writes, as below: that takes longer.
        with Writer(copy, f"{name}, measured").writing():
            begins, whole = measure(copy, work)
        require_done(copy)
    print(f"{name}: {_in_words(work, begins, whole)}", flush=True)
    for number, instant in enumerate(instants(begins, whole, points), 1):
        with copy_of(on, base, on.folder) as copy:
            print(f"{name} {number:2}/{points}, {once(copy, instant)}", flush=True)


def _backups(on: Appliance, points: int) -> None:
    work = Work(
        "appliance backup create",
        (("the copies", f"{DATA}/.backup-*"), ("the file", f"{DATA}/backups/.*/backup-*")),
    )
    with booted(on):
        on.box.sh(work.command)
        with Writer(on, "backup, measured").writing():
            begins, whole = measure(on, work)
        print(f"backup: {_in_words(work, begins, whole)}", flush=True)
        before = _whole_backups(on)
        for number, instant in enumerate(instants(begins, whole, points), 1):
            writer = Writer(on, f"backup {number}")
            with writer.writing():
                where = pull_plug_during(on, work, instant)
            boot = _boot(on)
            after = _whole_backups(on)
            # The rule of days and weeks may remove one, but only after a newer one is whole.
            if len(after) < min(len(before), 3) or max(before) > max(after):
                raise BoxError(f"backups are gone: {sorted(before - after)}")
            _require_whole(on, writer.name, writer.acknowledged)
            made, before = "a new one" if after - before else "none made", after
            print(f"backup {number:2}/{points}, {where}; {boot}, {made}, {len(after)} whole", flush=True)


def _restores(on: Appliance, points: int) -> None:
    with booted(on):
        on.mark("before the backup")
        on.appliance("backup create")
        work = Work(
            f"appliance backup restore {BACKUPS}/{max(_whole_backups(on))}",
            (("the staging", "var/lib/.appliance.restoring-*"), ("the swap", f"{DATA}/.restoring")),
        )
        # The first one brings the packs' files into this layer; later ones only give them second names. They take
        # tenths of a second, so one alone says little.
        measured = []
        for _ in range(4):
            _stop(on)
            measured.append(measure(on, work))
            _start(on)
        begins, whole = sorted(measured[1:], key=itemgetter(1))[1]
        print(f"restore: {_in_words(work, begins, whole)}", flush=True)
        for number, instant in enumerate(instants(begins, whole, points), 1):
            print(f"restore {number:2}/{points}, {_one_restore(on, work, instant, number)}", flush=True)


def _one_restore(on: Appliance, work: Work, instant: Instant, number: int) -> str:
    for left in on.box.root.glob(BEFORE_RESTORE):
        shutil.rmtree(left)
    later = f"after the backup {number}"
    on.mark(later)
    _stop(on)
    where = pull_plug_during(on, work, instant)
    boot = _boot(on)
    _require_nothing_half(on)
    is_old = later in on.organizations()
    if is_old == any(later in names for names in _set_aside(on)):
        raise BoxError(f"the data of before are {'twice here' if is_old else 'gone'}")
    _require_whole(on, f"restore {number}", {"before the backup"})
    _stop(on)
    on.box.sh(work.command)
    _start(on)
    _require_nothing_half(on)
    if later in on.organizations() or not any(later in names for names in _set_aside(on)):
        raise BoxError("told again, it did not restore, or did not keep what was there")
    _require_whole(on, f"restore {number} again", {"before the backup"})
    return f"{where}; {boot}, the {'old' if is_old else 'restored'} data; restored when told again"


def _in_words(work: Work, begins: list[float], whole: float) -> str:
    told = [f"{work.name(number)} from {begin:.2f} s on" for number, begin in enumerate(begins, 1)]
    return ", ".join([f"takes {whole:.2f} s", *told])


def _boot(on: Appliance) -> str:
    seconds = on.box.boot()
    on.wait_until_ready()
    return f"booted in {seconds:.1f} s"


def _stop(on: Appliance) -> None:
    on.box.sh("systemctl stop appliance.socket appliance.service")


def _start(on: Appliance) -> None:
    on.box.sh("systemctl start appliance.socket appliance.service")
    on.wait_until_ready()


def _whole_backups(on: Appliance) -> set[str]:
    """Return the names of the listed backups; raises BoxError when one of them is not whole."""
    listed = json.loads(on.appliance("backup list --json").stdout)["backups"]
    names = {item["name"] for item in listed}
    for name in names:
        on.appliance(f"backup verify {BACKUPS}/{name}")
    return names


def _set_aside(on: Appliance) -> list[set[str]]:
    """Return the organizations of every store that a restore put aside."""
    found = []
    for folder in on.box.root.glob(BEFORE_RESTORE):
        connection = connect(folder / STORE, read_only=True)
        try:
            found.append({row[0] for row in connection.execute("SELECT name FROM organizations")})
        finally:
            connection.close()
    return found


def _require_nothing_half(on: Appliance) -> None:
    """Raise BoxError unless all that was cut off is cleared away soon: the trial of a pack is decided by its model."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while left := _half(on.box.root):
        if time.monotonic() > deadline:
            raise BoxError(f"left half done: {left}\n{on.journal()[-3000:]}")
        time.sleep(0.5)


def _half(root: Path) -> list[str]:
    """Return what stands for something that goes on, or was cut off: trials, copies, versions not decided for."""
    data = root / DATA
    found = [*data.parent.glob(".appliance.*"), *data.glob(".upgrade-*"), *data.glob(".restoring")]
    found += [*data.glob("spool/*"), *data.glob("packs/.[!l]*")]
    kept = (".former-", ".verified", ".number-")
    return [str(path.relative_to(root)) for path in found if not path.name.startswith(kept)]


def _require_whole(on: Appliance, name: str, acknowledged: set[str]) -> int:
    """Raise BoxError unless the box serves, has everything acknowledged, and takes writes; returns the release."""
    release = on.release()
    if release not in (FIRST, SECOND):
        raise BoxError(f"the box runs release {release}")
    on.mark(f"{name}, afterwards")
    lost = {"at first", *acknowledged} - on.organizations()
    if lost:
        raise BoxError(f"acknowledged, but gone: {sorted(lost)}")
    on.call("POST", "/v1/chat/completions", CHAT)
    on.appliance("verify")
    return release
