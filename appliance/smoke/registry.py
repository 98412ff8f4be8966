"""The checks of the smoke test. A room with a new capability adds its line to ``CHECKS``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from appliance.errors import ApplianceError


class SmokeError(ApplianceError):
    """Something that should work here does not."""


class SkippedError(Exception):
    """A check that cannot be made here; the text says why."""


class Ground(msgspec.Struct, frozen=True, kw_only=True):
    """Where a check works.

    ``work`` is a folder of its own that is removed afterwards. ``data_dir`` is a copy of a box's data that
    the checks may change, None when there is none. ``packs`` are folders of unpacked packs, each with the
    word that says what they are.
    """

    work: Path
    data_dir: Path | None
    packs: tuple[tuple[str, Path], ...]


# Returns a few words on what was seen; raises anything when it does not work, SkippedError when it cannot be tried.
Check = Callable[[Ground], str]

# In this order, each by its name and the function that does it: loaded only when its turn comes, so that a
# module that is absent fails its own check and no other.
CHECKS: tuple[tuple[str, str], ...] = (
    ("store", "appliance.smoke.storage:store"),
    ("vectors", "appliance.smoke.storage:vectors"),
    ("full text", "appliance.smoke.storage:full_text"),
    ("one SQLite", "appliance.smoke.storage:one_sqlite"),
    ("zstd", "appliance.smoke.storage:compression"),
    ("backups", "appliance.smoke.backups:backup_and_restore"),
    ("passwords", "appliance.smoke.security:passwords"),
    ("signatures", "appliance.smoke.security:signatures"),
    ("TLS", "appliance.smoke.security:tls"),
    ("tokenizers", "appliance.smoke.text:tokenizers"),
    ("llguidance", "appliance.smoke.text:constraints"),
    ("templates", "appliance.smoke.text:templates"),
    ("time zones", "appliance.smoke.text:time_zones"),
    ("documentation page", "appliance.smoke.http:documentation"),
    ("HTTP server", "appliance.smoke.http:server"),
    ("ONNX Runtime", "appliance.smoke.engines:runtime"),
    ("chat", "appliance.smoke.engines:chat"),
    ("embedding", "appliance.smoke.engines:embedding"),
    ("rerank", "appliance.smoke.engines:rerank"),
    ("audio and transcription", "appliance.smoke.engines:transcription"),
)
