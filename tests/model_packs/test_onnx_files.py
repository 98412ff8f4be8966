"""Labels of kind ``onnx-files``: a recipe that names what is not there is refused in words."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from model_packs import onnx_files
from model_packs.errors import BuildError
from model_packs.recipe import load_recipes
from tests.model_packs.test_encoder_packs import labelled_graph


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"graph": "other.onnx"}, "other.onnx"),
        ({"key": "names"}, "no class names under 'names'"),
        ({"file": "g.onnx"}, "a member's name"),
    ],
)
def test_labels_that_are_not_there_are_refused(labels: dict[str, str], message: str, tmp_path: Path) -> None:
    entry = {"graph": "g.onnx", "key": "character", "file": "labels.txt", **labels}
    options = {"inputs": {"g.onnx": {"x": [1, 3]}}, "labels": [entry]}
    recipe = msgspec.structs.replace(load_recipes()["layout-cdla"], options=options)
    (tmp_path / "out").mkdir()
    labelled_graph(tmp_path / "g.onnx", 3)
    with pytest.raises(BuildError, match=message):
        onnx_files.build(recipe, {"g.onnx": tmp_path / "g.onnx"}, tmp_path / "out")
