"""What the aligner does when the library cannot give it a context."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.engines.errors import EngineError
from appliance.engines.speech.alignment import WordAligner
from appliance.engines.speech.library import WhisperModel


def test_a_model_file_that_is_gone_is_an_error(pack: Path, tmp_path: Path) -> None:
    model = WhisperModel(pack / "model.bin", threads=1)
    try:
        with pytest.raises(EngineError, match="word times"):
            WordAligner(model, tmp_path / "gone", "tiny.en", threads=1, check=lambda: None)
        # What the library said then is no fault of the next one.
        WordAligner(model, pack / "model.bin", "tiny.en", threads=1, check=lambda: None).close()
    finally:
        model.close()
