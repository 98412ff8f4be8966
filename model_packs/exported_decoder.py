"""A decoder as optimum exports it: float32, with its cache as inputs and outputs (``past_key_values``).

It is packed for the engine "onnx"; the default chat packs are written by ``model_packs.decoder``
instead, whose graphs batch requests over one cache.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from appliance.engines.cores import Cores
from appliance.packs.manifest import Decoder, Quality
from model_packs.build import PackParts
from model_packs.encoder_quality import sentences
from model_packs.errors import BuildError, RecipeError
from model_packs.recipe import Recipe

Floats = npt.NDArray[np.float32]

SAMPLES = 12
# Tokens of one sample: enough for a wrong rotary base or mask to show.
SAMPLE_TOKENS = 48


def sample_inputs(tokenizer_json: Path) -> list[dict[str, list[int]]]:
    """Return the token ids that the exported decoder is compared on."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_json))
    except Exception as error:  # the library raises the bare class
        raise BuildError(f"{tokenizer_json.name} is not a tokenizer: {error}") from error
    texts = sorted(sentences(), key=len, reverse=True)[:SAMPLES]
    inputs = [{"input_ids": tokenizer.encode(text).ids[:SAMPLE_TOKENS]} for text in texts]
    if any(len(entry["input_ids"]) < 2 for entry in inputs):
        raise BuildError("the tokenizer makes less than two tokens of a sentence")
    return inputs


def write_decoder(
    recipe: Recipe, graph: Path, members: dict[str, Path], reference: list[Floats], out: Path
) -> PackParts:
    """Pack the graph and compare it with ``reference`` logits (float32 [S, vocabulary] a sample).

    Every sample is run twice: in one piece, and in two with the cache of the first half.
    """
    for path in graph.parent.glob("model.onnx*"):  # weights of a large model lie beside its graph
        shutil.copyfile(path, out / path.name)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if name in members:
            shutil.copyfile(members[name], out / name)
    config: dict[str, Any] = json.loads(members["config.json"].read_text(encoding="utf-8"))
    section = _section(recipe, config)
    session: Any = Cores().session(out / "model.onnx")
    samples = sample_inputs(members["tokenizer.json"])
    agreements, differences = [], []
    for sample, expected in zip(samples, reference, strict=True):
        ids = np.array([sample["input_ids"]], dtype=np.int64)
        half = ids.shape[1] // 2
        whole, _ = _run(session, section, ids, {})
        first, cache = _run(session, section, ids[:, :half], {})
        second, _ = _run(session, section, ids[:, half:], cache)
        for logits in (whole, np.concatenate([first, second])):
            agreements.append((logits.argmax(axis=-1) == expected.argmax(axis=-1)).mean())
            differences.append(np.abs(logits - expected).max())
    words = f"{len(samples)} sentences, in one piece and in two (samples/sentences.txt)"
    weights = sum(path.stat().st_size for path in out.glob("model.onnx*"))
    return PackParts(
        decoder=section,
        context_length=int(config["max_position_embeddings"]),
        memory_bytes=2 * weights,
        parameters=_parameters(out / "model.onnx"),
        quality=[
            Quality(metric="top1_agreement", value=float(np.mean(agreements)), sample=words),
            Quality(metric="logit_difference_max", value=float(np.max(differences)), sample=words),
        ],
    )


def _section(recipe: Recipe, config: dict[str, Any]) -> Decoder:
    try:
        heads = int(config["num_attention_heads"])
        eos = config.get("eos_token_id")
        return Decoder(
            layers=int(config["num_hidden_layers"]),
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
            vocab_size=int(config["vocab_size"]),
            eos_token_ids=[token for token in (eos if isinstance(eos, list) else [eos]) if token is not None],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RecipeError(f"{recipe.name}: config.json is not a decoder's: {error}") from error


def _run(
    session: Any, section: Decoder, ids: npt.NDArray[np.int64], cache: dict[str, Floats]
) -> tuple[Floats, dict[str, Floats]]:
    """Run ids [1, S] after ``cache``; return logits [S, vocabulary] and the longer cache."""
    empty = np.zeros((1, section.kv_heads, 0, section.head_dim), dtype=np.float32)
    past = next(iter(cache.values())).shape[2] if cache else 0
    end = past + ids.shape[1]
    known = {
        "input_ids": ids,
        "attention_mask": np.ones((1, end), dtype=np.int64),
        "position_ids": np.arange(past, end, dtype=np.int64)[None],
    }
    names = [node.name for node in session.get_inputs()]
    feed = {name: known[name] if name in known else cache.get(name, empty) for name in names}
    outputs = session.run(None, feed)
    named = dict(zip([node.name for node in session.get_outputs()], outputs, strict=True))
    longer = {
        name.replace("present", "past_key_values"): value
        for name, value in named.items()
        if name.startswith("present")
    }
    return np.asarray(named["logits"][0], dtype=np.float32), longer


def _parameters(graph: Path) -> int:
    model = onnx.load(str(graph), load_external_data=False)
    return sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
