"""Export a Hugging Face model folder to ONNX, with reference outputs in torch beside it.

Runs in the export environment (torch, transformers, optimum), as a program of its own::

    python -m model_packs.export_onnx SOURCE OUT --task feature-extraction --inputs inputs.json --pooling mean

``inputs.json`` is a list of {"input_ids": [...], "token_type_ids": [...] or absent}, each run alone.
OUT gets ``model.onnx`` and ``reference.npz`` with one float32 array per input, named by its number:
the pooled unit vector [H] (feature-extraction), the logits [labels] (text-classification) or the
logits of every position [S, vocabulary] (text-generation-with-past).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

TASKS = ("feature-extraction", "text-classification", "text-generation-with-past")


def main(arguments: list[str] | None = None) -> int:
    """Export and write the reference; return 0."""
    parser = argparse.ArgumentParser(description="Export a Hugging Face model folder to ONNX.")
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--pooling", choices=("cls", "mean", "none"), default="none")
    options = parser.parse_args(arguments)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    with tempfile.TemporaryDirectory(prefix="export-") as work:
        source = readable_copy(options.source, Path(work))
        export(source, options.out, options.task)
        inputs = json.loads(options.inputs.read_text(encoding="utf-8"))
        write_reference(source, options.out / "reference.npz", options.task, inputs, options.pooling)
    return 0


def readable_copy(source: Path, work: Path) -> Path:
    """Return a folder with links to the model's files and a configuration that transformers 4 reads right.

    transformers 5 writes the rotary base as ``rope_parameters.rope_theta`` only; version 4 ignores
    that and silently computes with 10000.
    """
    folder = work / "model"
    folder.mkdir()
    for path in source.iterdir():
        if path.is_file() and path.name != "config.json":
            (folder / path.name).symlink_to(path.resolve())
    config: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    rope = config.get("rope_parameters")
    if isinstance(rope, dict):
        nested = [value for value in rope.values() if isinstance(value, dict)]
        if nested:
            raise SystemExit(
                "config.json has a rotary base per layer type, which this exporter cannot express"
            )
        if "rope_theta" in rope:
            config.setdefault("rope_theta", rope["rope_theta"])
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        if scaling.get("rope_type", "default") != "default":
            config.setdefault("rope_scaling", scaling)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def export(source: Path, out: Path, task: str) -> None:
    """Write ``model.onnx`` (float32) into ``out``."""
    from optimum.exporters.onnx import main_export

    main_export(
        str(source),
        output=str(out),
        task=task,
        dtype="fp32",
        device="cpu",
        library_name="transformers",
        local_files_only=True,
        trust_remote_code=False,
        # What the graph computes is compared with torch by the builder, on texts instead of noise.
        do_validation=False,
    )


def write_reference(
    source: Path, target: Path, task: str, inputs: list[dict[str, Any]], pooling: str
) -> None:
    """Run each input alone through the model in torch, float32, and save what it gives."""
    import numpy as np
    import torch
    import transformers

    classes = {
        "feature-extraction": transformers.AutoModel,
        "text-classification": transformers.AutoModelForSequenceClassification,
        "text-generation-with-past": transformers.AutoModelForCausalLM,
    }
    model = classes[task].from_pretrained(str(source), dtype=torch.float32, local_files_only=True).eval()
    results: dict[str, Any] = {}
    with torch.inference_mode():
        for number, entry in enumerate(inputs):
            output = model(**{name: torch.tensor([ids]) for name, ids in entry.items()})
            if task != "feature-extraction":
                results[str(number)] = output.logits[0].numpy()
                continue
            hidden = output.last_hidden_state[0]
            vector = hidden[0] if pooling == "cls" else hidden.mean(dim=0)
            results[str(number)] = (vector / vector.norm()).numpy()
    np.savez(target, **results)


if __name__ == "__main__":
    sys.exit(main())
