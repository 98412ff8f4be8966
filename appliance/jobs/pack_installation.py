"""The job that installs a model pack.

Arguments ``{"source": PATH or URL, "allow_unsigned": bool}``, result ``{"name", "version", "signed_by"}``: the id
of the key, or None for a pack that was allowed without a signature.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from appliance.bundles.installation import install_pack
from appliance.jobs.errors import JobCancelledError
from appliance.jobs.runner import Handler, JobContext
from appliance.network.download import DownloadCancelledError, download
from appliance.network.egress import EgressError, EgressPolicy
from appliance.packs.errors import PackCancelledError
from appliance.packs.store import PackStore
from appliance.signing.signatures import SUFFIX, signature_path
from appliance.signing.trust import TrustStore

log = logging.getLogger(__name__)

KIND = "pack-install"


def pack_installation(packs: PackStore, trust: TrustStore, spool_dir: Path, policy: EgressPolicy) -> Handler:
    """Return the handler. Installing again what is installed is harmless, so resuming is running again."""

    def install(context: JobContext, arguments: dict[str, Any]) -> dict[str, str | None]:
        allow_unsigned = arguments.get("allow_unsigned") is True
        try:
            with _local(arguments["source"], spool_dir, policy, context) as source:
                installed = install_pack(
                    packs, trust, source, context.progress, context.cancelled, allow_unsigned=allow_unsigned
                )
        except (PackCancelledError, DownloadCancelledError) as error:
            raise JobCancelledError(error.message) from error
        manifest, verified = installed.manifest, installed.verified
        return {
            "name": manifest.name,
            "version": manifest.version,
            "signed_by": None if verified is None else verified.key_id,
        }

    return install


@contextmanager
def _local(source: str, spool_dir: Path, policy: EgressPolicy, context: JobContext) -> Iterator[Path]:
    """Give the source as a path; what a URL names is fetched into the spool first, with its signature."""
    if not source.startswith(("http://", "https://")):
        yield Path(source)
        return
    spool_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=spool_dir) as directory:
        target = Path(directory) / "download.tar.zst"
        download(policy, source, target, context.progress, context.cancelled)
        signature = signature_path(target)
        try:
            download(policy, _beside(source), signature, context.progress, context.cancelled)
        except DownloadCancelledError:
            raise
        except EgressError as error:
            log.info("no signature was found beside %s: %s", urlsplit(source).path, error.message)
            signature.unlink(missing_ok=True)
        yield target


def _beside(url: str) -> str:
    """Return where the signature of what ``url`` names is: the path with ``.minisig`` behind it."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=parts.path + SUFFIX))
