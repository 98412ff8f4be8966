"""kill -9 at any instant: no half backup is listed, and a box is as it was or as it was restored."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance.backup.archive import check_archive
from appliance.backup.shelf import Shelf
from tests.backup.sample import add_line, box


@pytest.mark.parametrize("mode", ["create", "restore"])
def test_killed_before_every_single_step(tmp_path: Path, mode: str) -> None:
    command = [sys.executable, "-m", "tests.backup.crashing", mode, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


FOREVER = """
import sys
from pathlib import Path
from tests.backup.sample import backup, box
with box(Path(sys.argv[1])) as source:
    print("begun", flush=True)
    while True:
        print(backup(source, daily=1).name, flush=True)
"""


def test_killed_at_random_instants(tmp_path: Path) -> None:
    generator = random.Random(5)
    with box(tmp_path) as source:
        for number in range(300):
            add_line(source.writers[0], source.secret, f"line {number} " + "x" * 300)
    shelf = Shelf(tmp_path / "data/backups")
    for _ in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", FOREVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as making:
            assert making.stdout is not None
            for _ in range(generator.randrange(1, 3)):
                assert making.stdout.readline()
            time.sleep(generator.random() * 0.1)
            making.send_signal(signal.SIGKILL)
            told = [
                line.strip() for line in making.stdout if line.startswith("backup-") and line.endswith("\n")
            ]
        listed = shelf.backups()
        assert not told or listed[0].name >= told[-1]
        for each in listed:
            with (shelf.path / each.name).open("rb") as file:
                check_archive(file, [])
