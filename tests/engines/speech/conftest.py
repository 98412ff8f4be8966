"""One engine on the small English model for each module of tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import soundfile
from numpy.typing import NDArray

from appliance.engines.speech.engine import SpeechEngine
from appliance.packs.manifest import read_manifest
from tests.packs_fixture import built_pack
from tests.samples.speech import SPEECH_PACK, jfk_wav


@pytest.fixture(scope="session")
def pack() -> Path:
    return built_pack(SPEECH_PACK)


@pytest.fixture(scope="session")
def jfk_samples() -> NDArray[np.float32]:
    """Return the recording as float32 at 16 kHz."""
    samples: NDArray[np.float32]
    samples, rate = soundfile.read(jfk_wav(), dtype="float32")
    assert rate == 16_000
    return samples


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(pack: Path) -> AsyncIterator[SpeechEngine]:
    engine = SpeechEngine(
        pack, read_manifest(pack), threads=2, max_queue=2, deadline_seconds=300, max_seconds=120
    )
    await engine.start()
    await engine.wait_ready()
    yield engine
    await engine.close()
