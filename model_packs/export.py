"""Packs of kinds "optimum-encoder" and "optimum-decoder": Hugging Face models exported to ONNX by optimum.

The export runs in an environment of its own (``make packs-env``), because optimum needs torch and
an older transformers. Members are the files of the model's folder under their own names
(``config.json``, ``model.safetensors``, ``tokenizer.json``, ...), and licence texts.

An encoder is quantised like any other (``int8_matmul``) and compared with the forward pass in torch;
a decoder is packed as exported (``exported_decoder``).
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from appliance.engines.encoding.forward import TokenSequence
from appliance.engines.encoding.tokenizer import TextTokenizer
from appliance.packs.errors import PackError
from model_packs.build import PackParts
from model_packs.encoder import LEGAL, EncoderOptions, copy_legal, encoder_options, write_encoder
from model_packs.encoder_quality import calibration_sequences, sample_sequences
from model_packs.errors import BuildError, RecipeError
from model_packs.exported_decoder import sample_inputs, write_decoder
from model_packs.recipe import Recipe
from model_packs.smoothing import smooth

PYTHON_ENV = "APPLIANCE_EXPORT_PYTHON"
ROOT = Path(__file__).resolve().parent.parent
EXPORT_SECONDS = 3600


def build(recipe: Recipe, members: dict[str, Path], out: Path) -> PackParts:
    """Export, quantise (encoders) and measure. Raises BuildError when the export fails or is not set up."""
    for needed in ("config.json", "tokenizer.json"):
        if needed not in members:
            raise RecipeError(f"{recipe.name}: the source has no member {needed}")
    copy_legal(members, out)
    with tempfile.TemporaryDirectory(prefix="export-") as work:
        exported = Path(work) / "exported"
        if recipe.kind == "optimum-decoder":
            inputs = sample_inputs(members["tokenizer.json"])
            reference = run_export(members, exported, "text-generation-with-past", inputs)
            return write_decoder(recipe, exported / "model.onnx", members, reference, out)
        options = encoder_options(recipe)
        sequences = _sequences(recipe, options, members["tokenizer.json"])
        inputs = [_as_input(sequence) for sequence in sequences]
        task = "text-classification" if recipe.task == "rerank" else "feature-extraction"
        reference = run_export(members, exported, task, inputs, options.pooling)
        tokenizer = TextTokenizer(members["tokenizer.json"])
        calibration = calibration_sequences(recipe.task, tokenizer, options.context_length)
        float_model = smooth(onnx.load(str(exported / "model.onnx")), calibration)
        return write_encoder(
            recipe, options, float_model, {}, members["tokenizer.json"], out, reference=np.stack(reference)
        )


def run_export(
    members: dict[str, Path],
    exported: Path,
    task: str,
    inputs: list[dict[str, list[int]]],
    pooling: str = "none",
) -> list[npt.NDArray[np.float32]]:
    """Export the model of ``members`` into ``exported``; return what torch makes of each input.

    Raises BuildError with the exporter's own words when it fails.
    """
    source = exported.with_name("source")
    source.mkdir()
    for name, path in members.items():
        if not name.upper().startswith(LEGAL):
            (source / name).symlink_to(path.resolve())
    inputs_path = exported.with_name("inputs.json")
    inputs_path.write_text(json.dumps(inputs), encoding="utf-8")
    command = [
        *(export_python(), "-m", "model_packs.export_onnx", str(source), str(exported)),
        *("--task", task, "--inputs", str(inputs_path), "--pooling", pooling),
    ]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=EXPORT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"the export took longer than {EXPORT_SECONDS} s") from error
    if done.returncode != 0:
        raise BuildError(f"the export failed: {done.stderr.strip()[-3000:]}")
    with np.load(exported / "reference.npz") as arrays:
        return [arrays[str(number)] for number in range(len(inputs))]


def export_python() -> str:
    """Return the interpreter of the export environment. Raises BuildError when there is none."""
    if named := os.environ.get(PYTHON_ENV):
        return named
    if importlib.util.find_spec("optimum") is not None and importlib.util.find_spec("torch") is not None:
        return sys.executable
    python = ROOT / ".venv-packs" / "bin" / "python"
    if not python.is_file():
        raise BuildError(
            f"exporting needs torch and optimum in an environment of their own: run `make packs-env`, "
            f"or name its interpreter in {PYTHON_ENV}"
        )
    return str(python)


def _sequences(recipe: Recipe, options: EncoderOptions, tokenizer_json: Path) -> list[TokenSequence]:
    if recipe.task != "rerank" and options.pooling == "none":
        raise RecipeError(f'{recipe.name}: an exported embedding model needs pooling = "cls" or "mean"')
    try:
        return sample_sequences(recipe.task, TextTokenizer(tokenizer_json), options.context_length)
    except PackError as error:
        raise BuildError(f"{recipe.name}: {error}") from error


def _as_input(sequence: TokenSequence) -> dict[str, list[int]]:
    entry = {"input_ids": sequence.ids.tolist()}
    if sequence.type_ids is not None:
        entry["token_type_ids"] = sequence.type_ids.tolist()
    return entry
