"""A box of fake releases: signed bundles of a tiny tree, and a service that is a few lines of this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import sqlite_utils

from appliance.bundles.manifest import BundleManifest
from appliance.bundles.tree import list_tree
from appliance.bundles.writer import write_bundle
from appliance.cli.upgrade import upgrade
from appliance.config import Settings
from appliance.control.errors import ControlError
from appliance.control.stores import exclusive_lock
from appliance.packs.store import PackStore
from appliance.releases.errors import ReleaseError
from appliance.releases.gate import WriteGate
from appliance.releases.journal import Journal, Phase, write_journal
from appliance.releases.layout import Layout, Release
from appliance.releases.switching import Box, ServiceState, resume
from appliance.signing.keys import SecretKey, write_public_key
from appliance.signing.signatures import Subject, sign_file
from appliance.storage.database import Database
from appliance.storage.migrations import Migration, open_to

# What the fake program does for `smoke`: as the file `verdict` beside it says.
PROGRAM = """#!/bin/sh
test "$1" = smoke || exit 2
test -f "$3/appliance.db" || exit 3
echo "1 passed, 0 failed"
exit "$(cat "$(dirname "$(readlink -f "$0")")/verdict")"
"""


def write_cut_off(layout: Layout, data_dir: Path | str, phase: Phase, snapshot: str = "") -> None:
    """Write the journal of an upgrade from release 1 to 2 that was cut off in a phase."""
    journal = Journal(
        kind="upgrade",
        phase=phase,
        before="1-0.1",
        after="2-0.2",
        data_dir=str(data_dir),
        snapshot=snapshot,
        began=0,
    )
    write_journal(layout.journal_path, journal)


def first(database: sqlite_utils.Database) -> None:
    database.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE) STRICT")


@open_to(1)
def second(database: sqlite_utils.Database) -> None:
    database.execute("ALTER TABLE rows ADD COLUMN colour TEXT")


def closing_step(database: sqlite_utils.Database) -> None:
    database.execute("ALTER TABLE rows DROP COLUMN colour")


STEPS: Sequence[Migration] = (first, second, closing_step)


class Maker:
    """Makes and signs bundles."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = SecretKey.generate()
        self.trust = folder / "trust.d"
        self.trust.mkdir(mode=0o755)
        write_public_key(self.trust / "maker.pub", self.key.public)

    def tree(self, sequence: int, *, verdict: int = 0, **behaviour: object) -> Path:
        tree = self.folder / f"tree-{sequence}"
        (tree / "_internal").mkdir(parents=True)
        (tree / "appliance").write_text(PROGRAM)
        (tree / "appliance").chmod(0o755)
        (tree / "verdict").write_text(str(verdict))
        (tree / "behaviour.json").write_text(json.dumps(behaviour))
        (tree / "_internal" / "library.so").write_bytes(bytes(range(256)) * 16)
        return tree

    def bundle(
        self,
        sequence: int,
        *,
        schema: int = 1,
        key: SecretKey | None = None,
        verdict: int = 0,
        **behaviour: object,
    ) -> Path:
        tree = self.tree(sequence, verdict=verdict, schema=schema, **behaviour)
        manifest = BundleManifest(
            kind="system",
            name="appliance",
            version=f"0.{sequence}",
            sequence=sequence,
            created=1_790_000_000,
            files=list_tree(tree),
            schema_version=schema,
        )
        target = self.folder / manifest.file_name
        write_bundle(tree, manifest, target)
        sign_file(target, key or self.key, Subject(name="appliance", sequence=sequence, kind="system"))
        return target


class FakeService:
    """The service and its manager in one: what `current` leads to decides how it behaves."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.layout = Layout(settings.releases_dir)
        self.box: Box | None = None
        self.release: Release | None = None
        self.starts = 0
        self.wanted = False

    def running(self) -> bool:
        return self.release is not None

    def stop(self) -> None:
        self.release = None

    def start_later(self) -> None:
        self.wanted = True

    def start(self) -> None:
        if self.release is not None:
            return
        assert self.box is not None
        resume(self.box)
        release = self.layout.current()
        behaviour = self.behaviour(release)
        with exclusive_lock(self.settings.lock_path):
            database = self.open(release)
            PackStore(self.settings.packs_dir).sweep()
            # What a service does by itself on trial: nobody was told that it is kept.
            database.write_sync(
                lambda db: db.execute(
                    "INSERT INTO rows (text) VALUES (?)", [f"start {release.name} {self.count(db)}"]
                )
            )
            database.close()
        self.starts += 1
        if behaviour.get("meddles"):
            meddle(self.settings)
        if behaviour.get("crashes"):
            raise ReleaseError("the service does not start")
        self.release = release

    @staticmethod
    def count(db: sqlite_utils.Database) -> int:
        return int(db.execute("SELECT count(*) FROM rows").fetchone()[0])

    def behaviour(self, release: Release) -> dict[str, object]:
        loaded: dict[str, object] = json.loads((release.directory / "behaviour.json").read_text())
        return loaded

    def open(self, release: Release) -> Database:
        schema = release.manifest.schema_version
        return Database.open(self.settings.database_path, STEPS[:schema])

    def ask(self) -> ServiceState:
        if self.release is None:
            raise ControlError("the service does not run")
        behaviour = self.behaviour(self.release)
        gate = WriteGate(self.settings.releases_dir, self.settings.data_dir)
        if behaviour.get("dies_when_open") and not gate.closed:
            self.release = None
            raise ControlError("the service does not run")
        return ServiceState(
            version=self.release.manifest.version,
            tree=str(self.release.directory),
            closed=gate.closed,
            loading=0,
            broken=[str(name) for name in behaviour.get("broken", ())],  # type: ignore[attr-defined]
        )

    def write(self, text: str) -> None:
        """Acknowledge a write of a client; refused while the gate is closed."""
        assert self.release is not None
        WriteGate(self.settings.releases_dir, self.settings.data_dir).require_open("POST")
        with closing(self.open(self.release)) as database:
            database.write_sync(lambda db: db.execute("INSERT INTO rows (text) VALUES (?)", [text]))

    def rows(self) -> set[str]:
        with closing(self.open(self.layout.current())) as database:
            return {
                row[0] for row in database.read_sync(lambda db: list(db.execute("SELECT text FROM rows")))
            }


CONFIGURATION = "port = 443\n"
CHANGED = "port = 8443\n"


def meddle(settings: Settings) -> None:
    """Change what a release must not change: the configuration, one pack, another one gone, a third come."""
    configuration_of(settings).write_text(CHANGED)
    for name, text in (("stays", "other"), ("comes", "new")):
        pack = settings.packs_dir / name
        shutil.rmtree(pack, ignore_errors=True)
        pack.mkdir()
        (pack / "pack.toml").write_text(text)
    for name in ("goes", ".former-stays"):
        shutil.rmtree(settings.packs_dir / name)


def packs_of(settings: Settings) -> dict[str, str]:
    """Return what is in the packs' manifests, by the packs' directories."""
    found = settings.packs_dir.glob("*/pack.toml")
    return {path.parent.name: path.read_text() for path in found}


def configuration_of(settings: Settings) -> Path:
    """Return the file of a fake box's settings."""
    return settings.data_dir.with_name("appliance.toml")


class FakeBox:
    """A box on which release number 1 is installed, serves, and has acknowledged a write."""

    def __init__(self, folder: Path, maker: Maker) -> None:
        folder.mkdir()
        self.maker = maker
        self.settings = Settings(data_dir=folder / "data", releases_dir=folder / "opt", trust_dir=maker.trust)
        self.settings.data_dir.mkdir(mode=0o700)
        for name in ("stays", "goes", ".former-stays"):
            (self.settings.packs_dir / name).mkdir(parents=True)
            (self.settings.packs_dir / name / "pack.toml").write_text(name)
        configuration_of(self.settings).write_text(CONFIGURATION)
        configuration_of(self.settings).chmod(0o640)
        self.service = FakeService(self.settings)
        self.said: list[str] = []
        self.box = Box(
            layout=Layout(self.settings.releases_dir),
            data_dir=self.settings.data_dir,
            lock_file=self.settings.lock_path,
            configuration=configuration_of(self.settings),
            manager=self.service,
            ask=self.service.ask,
            lock=exclusive_lock,
            say=self.said.append,
        )
        self.service.box = self.box
        self.layout = self.box.layout

    def upgrade(self, bundle: Path) -> None:
        upgrade(self.settings, self.box, bundle, dry_run=False)
