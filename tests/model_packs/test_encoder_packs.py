"""The default encoder, OCR and layout packs: what they say of themselves, and that gates are measured."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from appliance.engines.cores import Cores
from appliance.packs.manifest import read_manifest
from model_packs import encoder, onnx_files
from model_packs.encoder_quality import calibration_sequences, kendall_tau, ranked_samples, sentences
from model_packs.errors import BuildError, RecipeError
from model_packs.recipe import load_recipes
from tests.packs_fixture import built_pack

RECIPES = load_recipes()


@pytest.mark.parametrize("name", ["bge-small-en-v1.5", "ms-marco-minilm-l-12-v2"])
def test_an_encoder_pack_says_what_the_engine_needs_and_what_was_measured(name: str) -> None:
    manifest = read_manifest(built_pack(name))
    assert manifest.encoder is not None
    assert manifest.context_length == 512
    assert manifest.encoder.dimensions == (384 if manifest.task == "embedding" else None)
    assert {figure.metric for figure in manifest.quality} == set(RECIPES[name].quality)
    assert all(figure.limit is not None and figure.sample for figure in manifest.quality)
    assert sum(file.size for file in manifest.file) < 36_000_000


def test_the_ocr_pack_holds_three_graphs_that_run_and_the_dictionary() -> None:
    pack = built_pack("pp-ocrv6")
    characters = (pack / "characters.txt").read_text(encoding="utf-8").split("\n")[:-1]
    session = Cores().session(pack / "recognition.onnx")
    (output,) = session.run(None, {"x": np.zeros((1, 3, 48, 64), dtype=np.float32)})
    # The blank of CTC and the space are not in the dictionary.
    assert output.shape[-1] == len(characters) + 2
    assert {"a", "Z", "ß", "中"} <= set(characters)
    assert {file.path for file in read_manifest(pack).file} >= {"detection.onnx", "orientation.onnx"}


def test_the_layout_pack_names_its_classes() -> None:
    labels = (built_pack("layout-cdla") / "labels.txt").read_text(encoding="utf-8").split()
    assert len(labels) == 10
    assert {"text", "title", "table", "figure"} <= set(labels)


def test_calibration_texts_are_not_measured_on() -> None:
    from appliance.engines.encoding.tokenizer import TextTokenizer

    tokenizer = TextTokenizer(built_pack("bge-small-en-v1.5") / "tokenizer.json")
    measured = {tuple(encoding.ids) for encoding in tokenizer.encode(sentences())}
    calibration = calibration_sequences("embedding", tokenizer, 512)
    assert len(calibration) > 40
    assert not measured & {tuple(sequence.ids.tolist()) for sequence in calibration}
    assert all(len(ranked.documents) > 1 for ranked in ranked_samples())


def test_kendall_tau_of_known_orders() -> None:
    a = np.array([1.0, 2.0, 3.0])
    assert kendall_tau(a, a) == 1
    assert kendall_tau(a, -a) == -1
    assert kendall_tau(a, np.array([1.0, 3.0, 2.0])) == pytest.approx(1 / 3)


def test_an_option_that_is_not_known_is_refused() -> None:
    recipe = msgspec.structs.replace(RECIPES["bge-small-en-v1.5"], options={"context": 512})
    with pytest.raises(RecipeError, match="options"):
        encoder.build(recipe, {}, Path())


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x07\x12"])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    members = {"model.onnx": tmp_path / "model.onnx", "tokenizer.json": tmp_path / "tokenizer.json"}
    with pytest.raises(BuildError):
        encoder.build(RECIPES["bge-small-en-v1.5"], members, tmp_path / "out")


def labelled_graph(path: Path, classes: int) -> None:
    graph = helper.make_graph(
        [helper.make_node("Abs", ["x"], ["y"])],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, classes])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, classes])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"character": "a\nb\nc"})
    onnx.save(model, str(path))


def test_labels_that_do_not_fit_the_graph_are_refused(tmp_path: Path) -> None:
    options = {
        "inputs": {"g.onnx": {"x": [1, 4]}},
        "labels": [{"graph": "g.onnx", "key": "character", "file": "labels.txt"}],
    }
    recipe = msgspec.structs.replace(RECIPES["layout-cdla"], options=options)
    (tmp_path / "out").mkdir()
    labelled_graph(tmp_path / "g.onnx", 4)
    with pytest.raises(BuildError, match="names 3 classes"):
        onnx_files.build(recipe, {"g.onnx": tmp_path / "g.onnx"}, tmp_path / "out")
    options["labels"][0]["unnamed"] = 1  # type: ignore[index]
    onnx_files.build(recipe, {"g.onnx": tmp_path / "g.onnx"}, tmp_path / "out")
    assert (tmp_path / "out" / "labels.txt").read_text() == "a\nb\nc\n"


def test_a_graph_that_does_not_run_on_its_trial_input_is_refused(tmp_path: Path) -> None:
    recipe = msgspec.structs.replace(RECIPES["layout-cdla"], options={"inputs": {"g.onnx": {"x": [1, 5]}}})
    (tmp_path / "out").mkdir()
    labelled_graph(tmp_path / "g.onnx", 4)
    with pytest.raises(BuildError, match="does not run"):
        onnx_files.build(recipe, {"g.onnx": tmp_path / "g.onnx"}, tmp_path / "out")
