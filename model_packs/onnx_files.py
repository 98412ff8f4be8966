"""Packs of kind "onnx-files": ONNX graphs as their makers publish them, checked and packed with their labels.

Every member is packed under its own name. ``[options.inputs]`` gives each graph's trial input;
``[[options.labels]]`` writes the class names that a graph carries in its metadata to a text file,
one a line.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from appliance.engines.cores import Cores
from appliance.packs.manifest import FilePath, PositiveInt
from model_packs.build import PackParts
from model_packs.errors import BuildError, RecipeError
from model_packs.recipe import Recipe

# A trial image larger than this is a slip in the recipe.
MAX_TRIAL_VALUES = 1 << 24

Shape = Annotated[list[PositiveInt], msgspec.Meta(min_length=1, max_length=6)]


class Labels(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Class names in ``graph``'s metadata under ``key``, to be written to ``file``.

    ``unnamed`` is how many classes of the graph's first output (last axis) have no name there, such
    as the blank of a CTC recogniser.
    """

    graph: str
    key: str
    file: FilePath
    unnamed: Annotated[int, msgspec.Meta(ge=0)] = 0


class OnnxOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A recipe's ``[options]``: trial input shapes by member name and input name, and labels."""

    inputs: dict[str, dict[str, Shape]]
    labels: list[Labels] = []


def build(recipe: Recipe, members: dict[str, Path], out: Path) -> PackParts:
    """Pack the members. Raises BuildError when a graph does not load or run, or its labels do not fit."""
    try:
        options = msgspec.convert(recipe.options, OnnxOptions)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{recipe.name}: options: {error}") from error
    graphs = {name for name in members if name.endswith(".onnx")}
    if graphs != set(options.inputs):
        raise RecipeError(f"{recipe.name}: every graph needs a trial input, and every trial input a graph")
    for labels in options.labels:
        if labels.graph not in graphs:
            raise RecipeError(
                f"{recipe.name}: labels are of {labels.graph!r}, which is no graph of the recipe"
            )
        if labels.file in members:
            raise RecipeError(f"{recipe.name}: the labels' file {labels.file!r} is a member's name")
    for name, path in members.items():
        shutil.copyfile(path, out / name)
    cores = Cores()
    classes: dict[str, int] = {}
    metadata: dict[str, dict[str, str]] = {}
    for name in sorted(graphs):
        classes[name], metadata[name] = _try(out / name, options.inputs[name], cores)
    for labels in options.labels:
        text = metadata[labels.graph].get(labels.key, "").rstrip("\n")
        if not text:
            raise BuildError(f"{labels.graph} has no class names under {labels.key!r} in its metadata")
        names = text.split("\n")
        if len(names) + labels.unnamed != classes[labels.graph]:
            raise BuildError(
                f"{labels.graph} names {len(names)} classes and leaves {labels.unnamed} unnamed, "
                f"but has {classes[labels.graph]}"
            )
        (out / labels.file).write_text("\n".join(names) + "\n", encoding="utf-8")
    return PackParts(
        memory_bytes=2 * sum((out / name).stat().st_size for name in graphs),
        parameters=sum(_parameters(out / name) for name in graphs),
    )


def _try(path: Path, shapes: dict[str, list[int]], cores: Cores) -> tuple[int, dict[str, str]]:
    """Run the graph once on a grey image; return the size of its first output's last axis, and its metadata."""
    if sum(math.prod(shape) for shape in shapes.values()) > MAX_TRIAL_VALUES:
        raise RecipeError(f"{path.name}: the trial input is larger than {MAX_TRIAL_VALUES} values")
    try:
        session: Any = cores.session(path)
        feed = {name: np.full(shape, 0.5, dtype=np.float32) for name, shape in shapes.items()}
        outputs = session.run(None, feed)
    except Exception as error:  # ONNX Runtime's errors have no common public class
        raise BuildError(f"{path.name} does not run on its trial input: {error}") from error
    if not all(np.isfinite(output).all() and output.size for output in outputs):
        raise BuildError(f"{path.name} gives nothing, or values that are not finite, on its trial input")
    return int(outputs[0].shape[-1]), dict(session.get_modelmeta().custom_metadata_map)


def _parameters(path: Path) -> int:
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    constants = [node.attribute[0].t for node in model.graph.node if node.op_type == "Constant"]
    return sum(math.prod(tensor.dims) for tensor in [*model.graph.initializer, *constants])
