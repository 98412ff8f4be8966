"""Build a speech pack (kind ``whisper-ct2``): CTranslate2 weights to whisper.cpp's ggml format, in q8_0 blocks.

Members: ``model.bin``, or its parts ``model.bin.part1``, ``model.bin.part2``, … in order;
``tokenizer.json``; and the spoken samples of ``quality.TRANSCRIPTS``. Option ``alignment``: the
alignment-heads preset for word times, such as ``base`` or ``tiny.en``.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

from appliance.packs.manifest import Quality, Speech
from model_packs.build import PackParts
from model_packs.errors import RecipeError, SourceError
from model_packs.recipe import Recipe

MODEL_FILE = "model.bin"
# Measured as resident memory of the worker after full windows, beside the weights: the interpreter with
# numpy, and whisper.cpp's buffers, which grow with the model's width.
_INTERPRETER_BYTES = 60_000_000
_BUFFER_BYTES_PER_STATE = 150_000


def build(recipe: Recipe, members: dict[str, Path], out: Path) -> PackParts:
    """Write ``model.bin`` (ggml, q8_0) into ``out`` and measure its word error rate beside float16's.

    Raises RecipeError or SourceError when a member is absent or not what it should be.
    """
    # Before anything loads an OpenMP library: spinning threads lose many-fold on busy cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    from model_packs.speech.ctranslate2 import read_model
    from model_packs.speech.ggml import read_shape, vocabulary, whisper_tensors, write_model
    from model_packs.speech.quality import JoinedSamples, word_error_rate

    alignment = recipe.options.get("alignment")
    if not (alignment is None or isinstance(alignment, str)) or set(recipe.options) - {"alignment"}:
        raise RecipeError(f"{recipe.name}: the kind whisper-ct2 has one option, alignment, a string")
    parts = [members[name] for name in sorted(members) if name.startswith("model.bin")]
    if not parts or "tokenizer.json" not in members:
        raise SourceError(f"{recipe.name}: the recipe names no model.bin or no tokenizer.json")
    samples = JoinedSamples(members)

    variables = read_model(parts)
    shape = read_shape(variables)
    tokens = vocabulary(members["tokenizer.json"].read_bytes())
    tensors = whisper_tensors(variables, shape)
    model = out / MODEL_FILE
    write_model(model, shape, tokens, tensors, "q8_0")

    threads = min(2, len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".reference-") as work:
        reference = Path(work) / MODEL_FILE
        write_model(reference, shape, tokens, tensors, "f16")
        float_errors = word_error_rate(reference, samples, threads=threads)
    errors = word_error_rate(model, samples, threads=threads)
    return PackParts(
        speech=Speech(model=MODEL_FILE, multilingual=shape.multilingual, alignment=alignment),
        context_length=shape.n_text_ctx,
        memory_bytes=model.stat().st_size
        + _INTERPRETER_BYTES
        + shape.n_audio_state * _BUFFER_BYTES_PER_STATE,
        parameters=int(sum(np.prod(tensor.shape) for tensor in tensors.values())),
        quality=[
            Quality(
                metric="word_error_rate",
                value=errors,
                reference=float_errors,
                sample=f"{len(samples.spoken)} spoken English words ({', '.join(samples.names)})",
            )
        ],
    )
