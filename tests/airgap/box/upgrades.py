"""The stages of the proof that bring another release or another pack, and lead back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from appliance.storage.migrations import MIGRATIONS, oldest_reader
from tests.airgap.box.goods import FIRST, SECOND
from tests.airgap.box.next_release import AFTER, BEFORE
from tests.airgap.box.pack_goods import PACK
from tests.airgap.box.shell import BoxError

if TYPE_CHECKING:
    from tests.airgap.box.proof import Proof

CONFIGURATION = "etc/appliance/appliance.toml"
CHANGE = "\n# Written while a release was on trial.\n"
# Programs of which schemas may open the store of this source.
BEFORE_READERS = oldest_reader(MIGRATIONS)


def refused_in_words(proof: Proof) -> str:
    """Bundles with an unknown key, a revoked key or damage; nothing changes."""
    proof.on.appliance(f"pack import {proof.on.carry_bundle(proof.goods.revocation)}")
    stolen = proof.refused(f"upgrade {proof.on.carry_bundle(proof.goods.stolen)}", "revoked")
    foreign = proof.refused(f"upgrade {proof.on.carry_bundle(proof.goods.foreign)}", "key", "trust")
    proof.refused(f"upgrade {proof.on.carry_bundle(proof.goods.damaged)}", "damaged")
    if proof.on.release() != FIRST:
        raise BoxError("a refused bundle changed the release")
    return f"{foreign} | {stolen}"


def broken_upgrades_come_back(proof: Proof) -> str:
    """A release that fails its smoke test is not switched to; one that migrates and cannot serve is left by itself."""
    proof.on.mark("before the broken upgrades")
    smoke = proof.refused(f"upgrade {proof.on.carry_bundle(proof.goods.fails_smoke)}", "smoke test")
    _require_unchanged(proof)
    before = (proof.box.root / CONFIGURATION).read_text()
    bundle = proof.on.carry_bundle(proof.goods.fails_service)
    with _written_on_trial(proof):
        serve = proof.refused(f"upgrade {bundle}", "runs again")
    _require_unchanged(proof)
    if "the store is migrated" not in proof.on.journal():
        raise BoxError(f"the broken release did not migrate the store:\n{proof.on.journal()[-3000:]}")
    if (proof.box.root / CONFIGURATION).read_text() != before:
        raise BoxError("the configuration is not the one of before the broken upgrade")
    kept = [path.name for path in (proof.box.root / CONFIGURATION).parent.glob("appliance.toml.of-*")]
    if len(kept) != 1:
        raise BoxError(f"the configuration that was written on trial is not kept: {kept}")
    return (
        f"{smoke} | {serve}; store at schema {BEFORE} again, configuration as before, the other in {kept[0]}"
    )


def _require_unchanged(proof: Proof) -> None:
    proof.require(FIRST, "before the broken upgrades")
    proof.require_schema(BEFORE, BEFORE_READERS)


@contextmanager
def _written_on_trial(proof: Proof) -> Iterator[None]:
    """Write into the configuration as soon as a release is on trial. Raises BoxError when none came to that."""
    ended, written = threading.Event(), threading.Event()

    def write() -> None:
        while not ended.is_set() and not written.is_set():
            if proof.on.phase() == "trial":
                with (proof.box.root / CONFIGURATION).open("a") as file:
                    file.write(CHANGE)
                written.set()
            time.sleep(0.05)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if not written.is_set():
        raise BoxError("no release was on trial")


def upgraded(proof: Proof) -> str:
    """To the next release, whose migration runs on the copy and then on the store; older bundles are refused then."""
    proof.on.mark("before the upgrade")
    bundle = proof.on.carry_bundle(proof.goods.second)
    on_copy = f"from schema {BEFORE} to {AFTER}"
    tried = proof.on.appliance(f"upgrade --dry-run {bundle}").stdout
    if on_copy not in tried:
        raise BoxError(f"the trial says nothing of a migration:\n{tried}")
    proof.require_schema(BEFORE, BEFORE_READERS)
    proof.on.appliance(f"upgrade {bundle}")
    proof.require(SECOND, "before the upgrade")
    proof.require_schema(AFTER, BEFORE)
    version, said = proof.goods.next.version, proof.on.appliance("version").stdout
    if version not in said.split():
        raise BoxError(f"the box runs {said}")
    proof.on.mark("by the next release")
    refused = proof.refused(f"upgrade {proof.on.carry_bundle(proof.goods.first)}", "older")
    told = f"the copy {on_copy}, the store still at {BEFORE}; then release {SECOND} ({version}), the store at {AFTER}"
    return f"{told} | {refused}"


def rolled_back(proof: Proof) -> str:
    """The release before opens the store that the next one has migrated, with what was written since, and writes."""
    proof.on.appliance("rollback")
    proof.require(FIRST, "by the next release")
    proof.require_schema(AFTER, BEFORE)
    proof.on.mark("by the first release again")
    return f"release {FIRST} over the store of schema {AFTER}, which is open to {BEFORE}; data kept, writes taken"


def a_newer_pack(proof: Proof) -> str:
    """A pack's newer version is tried, taken while the service runs, and serves."""
    goods = proof.goods.packs
    proof.on.require_pack(PACK, goods.version)
    said = proof.on.appliance(f"upgrade {proof.on.carry_bundle(goods.newer)}").stdout
    if " 0 failed" not in said:
        raise BoxError(f"the pack was not tried:\n{said}")
    proof.on.require_pack(PACK, goods.newer_version)
    if (
        f"{PACK} {goods.newer_version}, before it {goods.version}"
        not in proof.on.appliance("upgrade --status").stdout
    ):
        raise BoxError("the status does not name the version to go back to")
    return said.splitlines()[-1]


def broken_packs_come_back(proof: Proof) -> str:
    """One that fails its smoke test changes nothing; installed unseen, it does not load and is left by itself."""
    goods = proof.goods.packs
    bundle = proof.on.carry_bundle(goods.broken)
    tried = proof.refused(f"upgrade {bundle}", "smoke test", "nothing was changed")
    proof.on.require_pack(PACK, goods.newer_version)
    proof.refused(f"pack install {bundle}", "cannot be loaded", "the one before serves again")
    proof.on.require_pack(PACK, goods.newer_version)
    return f"{tried} | installed unseen: it cannot be loaded, {goods.newer_version} serves again"


def an_older_pack_and_the_way_back(proof: Proof) -> str:
    """The old file is refused; the command leads back."""
    goods = proof.goods.packs
    refused = proof.refused(f"upgrade {proof.on.carry_bundle(goods.first)}", "older", f"rollback {PACK}")
    proof.on.appliance(f"rollback {PACK}")
    proof.on.require_pack(PACK, goods.version)
    return f"{refused} | then {PACK} {goods.version} again"
