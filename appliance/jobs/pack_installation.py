"""The job that installs a model pack: arguments ``{"source": PATH or URL}``, result ``{"name", "version"}``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from appliance.jobs.errors import JobCancelledError
from appliance.jobs.runner import Handler, JobContext
from appliance.network.download import DownloadCancelledError, download
from appliance.network.egress import EgressPolicy
from appliance.packs.errors import PackCancelledError
from appliance.packs.store import PackStore

KIND = "pack-install"


def pack_installation(packs: PackStore, spool_dir: Path, policy: EgressPolicy) -> Handler:
    """Return the handler. Installing again what is installed is harmless, so resuming is running again."""

    def install(context: JobContext, arguments: dict[str, Any]) -> dict[str, str]:
        try:
            with _local(arguments["source"], spool_dir, policy, context) as source:
                manifest = packs.install(source, context.progress, context.cancelled)
        except (PackCancelledError, DownloadCancelledError) as error:
            raise JobCancelledError(error.message) from error
        return {"name": manifest.name, "version": manifest.version}

    return install


@contextmanager
def _local(source: str, spool_dir: Path, policy: EgressPolicy, context: JobContext) -> Iterator[Path]:
    """Give the source as a path; what a URL names is fetched into the spool first."""
    if not source.startswith(("http://", "https://")):
        yield Path(source)
        return
    spool_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=spool_dir) as directory:
        target = Path(directory) / "download.tar.zst"
        download(policy, source, target, context.progress, context.cancelled)
        yield target
