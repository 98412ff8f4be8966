"""What every answer of the generation routes begins with, streamed or not."""

from __future__ import annotations

import time
import uuid
from typing import Any

from appliance.api.openai.generation.fingerprint import system_fingerprint
from appliance.packs.manifest import Manifest


def answer_head(prefix: str, model: str, manifest: Manifest, variant: str) -> dict[str, Any]:
    """Return id, creation time, model name as asked for, and fingerprint; the same in all chunks of a stream."""
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": system_fingerprint(manifest, variant),
    }
