"""Plain ONNX Runtime, one text a run, and fastembed, on the same graph.

Options: ``model``, a folder with model_optimized.onnx and the tokenizer's files; ``threads``; ``library``,
``onnxruntime`` or ``fastembed``. Request: ``texts``, ``batch``, ``vectors`` (whether to answer with them).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MAX_TOKENS = 512
# The name under which fastembed looks for it.
MODEL_FILE = "model_optimized.onnx"


def plain(folder: Path, threads: int) -> tuple[str, Callable[[list[str], int], Any]]:
    """Return the version and a function that embeds texts one at a time."""
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        str(folder / MODEL_FILE), options, providers=["CPUExecutionProvider"]
    )
    inputs = {item.name for item in session.get_inputs()}

    def embed(texts: list[str], _: int) -> Any:
        vectors = []
        for text in texts:
            encoding = tokenizer.encode(text)
            feeds = {
                "input_ids": np.array([encoding.ids], dtype=np.int64),
                "attention_mask": np.array([encoding.attention_mask], dtype=np.int64),
                "token_type_ids": np.array([encoding.type_ids], dtype=np.int64),
            }
            output = session.run(None, {name: feeds[name] for name in inputs})[0]
            vector = output[0, 0] if output.ndim == 3 else output[0]
            vectors.append(vector / np.linalg.norm(vector))
        return np.array(vectors)

    return f"onnxruntime {onnxruntime.__version__}", embed


def fastembed(folder: Path, threads: int) -> tuple[str, Callable[[list[str], int], Any]]:
    """Return the version and fastembed's own class on the folder."""
    from importlib.metadata import version

    from fastembed import TextEmbedding

    model = TextEmbedding("BAAI/bge-small-en-v1.5", specific_model_path=str(folder), threads=threads)

    def embed(texts: list[str], batch: int) -> Any:
        return np.array(list(model.embed(texts, batch_size=batch)))

    return f"fastembed {version('fastembed')}", embed


def main() -> None:
    """Answer requests until the input ends."""
    options = json.loads(sys.argv[1])
    load = {"onnxruntime": plain, "fastembed": fastembed}[options["library"]]
    version, embed = load(Path(options["model"]), options["threads"])
    print(json.dumps({"version": version}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        started = time.perf_counter()
        if request["batch"] == 1:
            vectors = np.concatenate([embed([text], 1) for text in request["texts"]])
        else:
            vectors = embed(request["texts"], request["batch"])
        answer = {"seconds": time.perf_counter() - started}
        if request["vectors"]:
            answer["vectors"] = vectors.tolist()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
