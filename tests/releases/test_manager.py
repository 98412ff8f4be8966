"""What the service is started with: its release's units, in the place that systemd reads."""

from __future__ import annotations

from pathlib import Path

from appliance.releases.manager import Systemd


def test_the_units_of_the_release_are_installed_but_what_an_operator_masked_stays_so(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for folder in (source, target):
        folder.mkdir()
    for name in ("appliance.service", "appliance.socket", "appliance-backup.timer"):
        (source / name).write_text("new")
    (target / "appliance.service").write_text("old")
    masked = target / "appliance-backup.timer"
    masked.symlink_to("/dev/null")
    Systemd("true", source, target).start()
    assert (target / "appliance.service").read_text() == "new"
    assert (target / "appliance.socket").read_text() == "new"
    assert masked.readlink() == Path("/dev/null")
