"""``appliance rollback``: the previous release again, with all that was written since; or a pack's former version."""

from __future__ import annotations

import click

from appliance.backup.swap import acting_as_owner
from appliance.cli import settings_of
from appliance.cli.pack_upgrade import roll_pack_back
from appliance.cli.upgrade import box_of, require_data, systemctl_option, uninterrupted
from appliance.releases import snapshot
from appliance.releases.errors import ReleaseError
from appliance.releases.switching import recover, switch
from appliance.releases.trial import rehearse


@click.command("rollback")
@click.argument("pack", required=False)
@systemctl_option
@click.pass_context
def command(ctx: click.Context, pack: str | None, systemctl: str) -> None:
    """Run the previous release again, or use the former version of PACK; everything that was written since is kept."""
    settings = settings_of(ctx)
    box = box_of(settings, systemctl)
    require_data(settings)
    if pack is not None:
        with uninterrupted():
            roll_pack_back(settings, box, pack)
        return
    box.layout.require_installed()
    with uninterrupted(), box.driving():
        recover(box)
        box.layout.sweep()
        with acting_as_owner(settings.data_dir):
            snapshot.clear(settings.data_dir)
        current = box.layout.current()
        previous = box.layout.previous(current)
        oldest = snapshot.oldest_reader_of(settings.data_dir)
        if oldest > previous.manifest.schema_version:
            raise ReleaseError(
                f"{previous} cannot open the store as it is now (it knows schemas up to "
                f"{previous.manifest.schema_version}, the store needs {oldest}): restore a backup of then instead"
            )
        click.echo(f"Trying {previous} over a copy of this box's data.")
        rehearse(previous, settings.data_dir, settings.secret_path, lambda text: click.echo(f"  {text}"))
        switch(box, "rollback", current, previous)
