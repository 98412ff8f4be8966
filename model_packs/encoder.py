"""Packs of kind "encoder-int8": an encoder that comes as dynamically quantised ONNX, made independent of its batch.

Members: ``model.onnx``, ``tokenizer.json``, and licence texts under any name that begins with
LICENSE or NOTICE.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
import onnx

from appliance.engines.cores import Cores
from appliance.engines.encoding.forward import EncoderGraph, TokenSequence, open_graph
from appliance.engines.encoding.tokenizer import TextTokenizer
from appliance.packs.errors import PackError
from appliance.packs.manifest import Encoder
from model_packs.build import PackParts
from model_packs.encoder_quality import embedding_quality, rerank_quality, sample_sequences
from model_packs.errors import BuildError, RecipeError
from model_packs.int8_matmul import Grid, dequantise, quantise
from model_packs.recipe import Recipe

LEGAL = ("LICENSE", "LICENCE", "NOTICE", "MODEL_LICENSES")
# What a loaded session keeps beside its weights: its tokenizer and the working memory of a batch of 512
# tokens. (Measured with a 34 MB graph: 59 MB resident after use.)
SESSION_BYTES = 48 << 20


class EncoderOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A recipe's ``[options]``: what the graph does not say. ``output`` empty = the graph's first."""

    context_length: int
    pooling: Literal["cls", "mean", "none"] = "none"
    output: str = ""
    pad_token: str = "[PAD]"  # noqa: S105 - a token of the vocabulary


def encoder_options(recipe: Recipe) -> EncoderOptions:
    """Return the recipe's options, checked. Raises RecipeError."""
    try:
        return msgspec.convert(recipe.options, EncoderOptions)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{recipe.name}: options: {error}") from error


def build(recipe: Recipe, members: dict[str, Path], out: Path) -> PackParts:
    """Write the pack's files into ``out``. Raises BuildError when the source is not such a model."""
    options = encoder_options(recipe)
    float_model, grids = dequantise(read_model(members["model.onnx"]))
    if not grids:
        raise BuildError(f"{recipe.name}: the source is not a dynamically quantised model")
    copy_legal(members, out)
    return write_encoder(recipe, options, float_model, grids, members["tokenizer.json"], out)


def write_encoder(
    recipe: Recipe,
    options: EncoderOptions,
    float_model: onnx.ModelProto,
    grids: dict[str, Grid],
    tokenizer_json: Path,
    out: Path,
    *,
    reference: npt.NDArray[np.float32] | None = None,
) -> PackParts:
    """Quantise ``float_model`` into ``out``, with its tokenizer, and measure what was lost.

    The task's samples are compared with ``reference`` (unit vectors float32 [n, H], or logits
    [n, 1]) when it is given, else with what ``float_model`` makes of them.
    """
    graph_path = out / "model.onnx"
    onnx.save(quantise(float_model, grids), str(graph_path))
    pad_token_id = write_tokenizer(tokenizer_json, out / "tokenizer.json", options.pad_token)
    encoder = Encoder(pooling=options.pooling, output=options.output, pad_token_id=pad_token_id)
    cores = Cores()
    rerank = recipe.task == "rerank"
    try:
        graph = open_graph(out, encoder, cores)
        tokenizer = TextTokenizer(out / encoder.tokenizer)
        check_vocabulary(graph, tokenizer)
        sequences = sample_sequences(recipe.task, tokenizer, options.context_length)
        if reference is None:
            reference = _reference(float_model, encoder, cores, sequences, rerank=rerank)
        measure = rerank_quality if rerank else embedding_quality
        quality = measure(graph, reference, sequences)
    except PackError as error:
        raise BuildError(f"{recipe.name}: {error}") from error
    return PackParts(
        encoder=msgspec.structs.replace(encoder, dimensions=None if rerank else reference.shape[1]),
        context_length=options.context_length,
        memory_bytes=graph_path.stat().st_size + SESSION_BYTES,
        parameters=sum(math.prod(tensor.dims) for tensor in float_model.graph.initializer),
        quality=quality,
    )


def _reference(
    float_model: onnx.ModelProto,
    encoder: Encoder,
    cores: Cores,
    sequences: list[TokenSequence],
    *,
    rerank: bool,
) -> npt.NDArray[np.float32]:
    """Run every sequence alone through the float model."""
    with tempfile.TemporaryDirectory(prefix="encoder-") as work:
        # Weights beside the graph: a float model may be larger than one protobuf message can be.
        onnx.save(
            float_model, str(Path(work) / encoder.graph), save_as_external_data=True, location="weights"
        )
        graph = open_graph(Path(work), encoder, cores)
        run = graph.logits if rerank else graph.vectors
        return np.concatenate([run([sequence]) for sequence in sequences])


def read_model(path: Path) -> onnx.ModelProto:
    """Read an ONNX file that holds its weights. Raises BuildError when it is not one."""
    try:
        model = onnx.load(str(path), load_external_data=False)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf and the checker share no base class
        raise BuildError(f"{path.name} is not a valid ONNX model: {error}") from error
    return model


def write_tokenizer(source: Path, target: Path, pad_token: str) -> int:
    """Write ``tokenizer.json`` without its padding and truncation; return the id of ``pad_token``."""
    try:
        document = json.loads(source.read_text(encoding="utf-8"))
        document["padding"] = document["truncation"] = None
    except (ValueError, TypeError) as error:
        raise BuildError(f"{source.name} is not a tokenizer: {error}") from error
    target.write_text(json.dumps(document, ensure_ascii=False) + "\n", encoding="utf-8")
    from tokenizers import Tokenizer

    pad_token_id: int | None = Tokenizer.from_file(str(target)).token_to_id(pad_token)
    if pad_token_id is None:
        raise BuildError(f"the tokenizer has no token {pad_token!r} to pad with")
    return pad_token_id


def check_vocabulary(graph: EncoderGraph, tokenizer: TextTokenizer) -> None:
    """Raise BuildError when the graph has no row for the tokenizer's last id."""
    last = TokenSequence(np.array([tokenizer.vocab_size - 1], dtype=np.int64))
    try:
        graph.vectors([last])
    except Exception as error:  # ONNX Runtime's errors have no common public class
        raise BuildError(f"the graph does not know every token of its tokenizer: {error}") from error


def copy_legal(members: dict[str, Path], out: Path) -> None:
    """Copy licence texts and notices into the pack."""
    for name, path in members.items():
        if name.upper().startswith(LEGAL):
            shutil.copyfile(path, out / name)
