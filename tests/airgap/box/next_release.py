"""The program of the next release: this source, one version on, with a migration that this one does not know.

It is frozen from a copy of the source, so that nothing for its sake is in what is shipped. The migration adds, as
those of releases do that a box may go back from.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from appliance import __version__
from appliance.storage.migrations import MIGRATIONS
from build.freeze import source_epoch
from build.twice import SOURCES
from tests.airgap.box.shell import BoxError

CLONE = Path(__file__).parents[3]
VERSION = f"{__version__}.next"
BEFORE, AFTER = len(MIGRATIONS), len(MIGRATIONS) + 1
MIGRATION = """

@open_to({before})
def _colours(database: sqlite_utils.Database) -> None:
    database.execute("ALTER TABLE users ADD COLUMN favourite_colour TEXT")
    database.execute("CREATE TABLE colours (name TEXT PRIMARY KEY) STRICT")


MIGRATIONS = (*MIGRATIONS, _colours)
"""


@dataclass(frozen=True)
class NextRelease:
    """A frozen tree, and what its manifest has to say of it."""

    tree: Path
    version: str
    schema_version: int
    schema_readable_from: int


def freeze_next(folder: Path) -> NextRelease:
    """Freeze the next release in ``folder``. Raises BoxError."""
    source = folder / "source"
    for name in SOURCES:
        if (CLONE / name).is_dir():
            shutil.copytree(CLONE / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(CLONE / name, source / name)
    migrations = source / "appliance" / "storage" / "migrations.py"
    migrations.write_text(migrations.read_text() + MIGRATION.format(before=BEFORE))
    package = source / "appliance" / "__init__.py"
    text = package.read_text()
    if text.count(f'"{__version__}"') != 1:
        raise BoxError(f"{package} does not say its version once")
    package.write_text(text.replace(f'"{__version__}"', f'"{VERSION}"'))
    done = subprocess.run(
        [sys.executable, "-m", "build.freeze", "--out", str(folder / "made")],
        cwd=source,
        env={
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": str(folder),
            "SOURCE_DATE_EPOCH": str(source_epoch()),
        },
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    if done.returncode:
        raise BoxError(f"the next release cannot be frozen:\n{done.stdout}{done.stderr}")
    return NextRelease(folder / "made" / "appliance", VERSION, AFTER, BEFORE)
