"""Two releases that are the real program of this source, and a stand-in for systemctl that runs their unit."""

from __future__ import annotations

import sys
from pathlib import Path

from appliance.bundles.manifest import BundleManifest
from appliance.bundles.tree import list_tree
from appliance.bundles.writer import write_bundle
from appliance.releases.layout import Layout
from appliance.signing.signatures import Subject, sign_file
from appliance.storage.migrations import MIGRATIONS
from tests.releases.box import Maker

# The second release adds a column, which the first one may write around.
PROGRAM = """#!{python} -P
import sys
from pathlib import Path
import appliance.frozen
import appliance.storage.migrations as migrations
appliance.frozen.tree = lambda: Path(__file__).resolve().parent
EXTRA, BREAKS = {extra}, {breaks}

@migrations.open_to(len(migrations.MIGRATIONS))
def adds(database):
    database.execute("ALTER TABLE users ADD COLUMN favourite_colour TEXT")

if EXTRA:
    migrations.MIGRATIONS = (*migrations.MIGRATIONS, adds)
if sys.argv[1] == "smoke":
    # The store of the copy, without the engines: those are tried elsewhere.
    import appliance.smoke.registry as registry
    registry.CHECKS = registry.CHECKS[:1]
    import appliance.smoke.run
    appliance.smoke.run.CHECKS = registry.CHECKS
if BREAKS and sys.argv[1] == "serve":
    # The store is migrated, and then it does not come up.
    import appliance.app
    def build_app(*_):
        raise RuntimeError("this release is broken")
    appliance.app.build_app = build_app
from appliance.__main__ import main
main()
"""

# Runs what the unit says: the resume, then the service; `start` waits until it is ready.
SYSTEMCTL = """#!{python}
import os, signal, subprocess, sys, time, urllib.request
from pathlib import Path
state = Path({state!r}); opt = Path({opt!r})
pid_file = state / "pid"
def pid():
    try:
        number = int(pid_file.read_text())
        os.kill(number, 0)
        # A zombie of ours is gone.
        return None if Path(f"/proc/{{number}}/stat").read_text().split(") ")[1][0] == "Z" else number
    except (OSError, ValueError):
        return None
verb = sys.argv[1]
if verb == "is-active":
    print("active" if pid() else "inactive")
    sys.exit(0 if pid() else 3)
if verb == "stop" and pid():
    os.kill(pid(), signal.SIGTERM)
    while pid():
        time.sleep(0.05)
if verb == "start" and not pid():
    with (state / "log").open("ab") as log:
        subprocess.run([str(opt / "keeper/appliance"), "upgrade", "--resume"], stdout=log, stderr=log)
        service = subprocess.Popen(
            [str(opt / "current/appliance"), "serve"], stdout=log, stderr=log, start_new_session=True
        )
    pid_file.write_text(str(service.pid))
    while True:
        if service.poll() is not None:
            sys.exit("Job for appliance.service failed")
        try:
            urllib.request.urlopen("http://127.0.0.1:{port}/health/ready", timeout=5)
            break
        except OSError:
            time.sleep(0.05)
"""


def release(maker: Maker, sequence: int, *, extra: bool = False, breaks: bool = False) -> tuple[Path, Path]:
    """Make a release of the real program; return its bundle and its tree."""
    tree = maker.folder / f"program-{sequence}"
    tree.mkdir()
    (tree / "appliance").write_text(PROGRAM.format(python=sys.executable, extra=extra, breaks=breaks))
    (tree / "appliance").chmod(0o755)
    manifest = BundleManifest(
        kind="system",
        name="appliance",
        version=f"0.{sequence}",
        sequence=sequence,
        created=1_790_000_000,
        files=list_tree(tree),
        schema_version=len(MIGRATIONS) + extra,
    )
    bundle = maker.folder / manifest.file_name
    write_bundle(tree, manifest, bundle)
    sign_file(bundle, maker.key, Subject(name="appliance", sequence=sequence, kind="system"))
    return bundle, tree


def systemctl(folder: Path, layout: Layout, port: int) -> Path:
    """Make the stand-in."""
    path = folder / "systemctl"
    path.write_text(
        SYSTEMCTL.format(python=sys.executable, state=str(folder), opt=str(layout.root), port=port)
    )
    path.chmod(0o755)
    return path
