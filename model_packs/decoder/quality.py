"""What quantisation cost a decoder: perplexity, divergence and agreement against its float graph.

The text is teacher-forced in windows: every position of a window is predicted from the window's
true beginning, by both graphs, and the two distributions are compared. No text is generated, since
a small model's greedy choice flips on near-ties.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.engines.cores import Cores
from appliance.packs.manifest import ProfileName, Quality
from model_packs.decoder.weights import DecoderConfig
from model_packs.errors import BuildError

WINDOW = 512
# Positions per run; their logits for the whole vocabulary are in memory at once, twice.
CHUNK = 256
# Fewer positions than this say little about a model.
MIN_POSITIONS = 1024
# CPUs without VNNI add int8 products in 16 bits, which saturate; with this entry they do it another way.
EXACT_INTEGERS = "1"
SAMPLE = Path(__file__).parents[1] / "samples" / "english.txt"

FloatArray = NDArray[np.float32]


def sample_tokens(tokenizer: str) -> list[int]:
    """Return the sample text as token ids by the text of a ``tokenizer.json``."""
    from tokenizers import Tokenizer

    try:
        encoder = Tokenizer.from_str(tokenizer)
    except Exception as error:  # the library raises Exception itself
        raise BuildError(f"the tokenizer cannot be read: {error}") from error
    ids: list[int] = encoder.encode(SAMPLE.read_text(encoding="utf-8"), add_special_tokens=False).ids
    return ids


class TeacherForcing:
    """Runs a decoder graph over given tokens, prefilling in chunks into one reused KV cache."""

    def __init__(self, graph: Path, config: DecoderConfig, cores: Cores) -> None:
        # Long runs gain nothing from threads that spin, and a build should leave the machine usable.
        self._session = cores.session(
            graph, session__intra_op__allow_spinning="0", session__x64quantprecision=EXACT_INTEGERS
        )
        shape = (1, config.kv_heads, min(WINDOW, config.context_length), config.head_dim)
        self._cache = [np.zeros(shape, dtype=np.float32) for _ in range(2 * config.layers)]

    def logits(self, tokens: list[int]) -> Iterator[FloatArray]:
        """Yield the logits float32 [<= CHUNK, vocab] of every position of ``tokens``, in order."""
        for start in range(0, len(tokens), CHUNK):
            part = tokens[start : start + CHUNK]
            yield self._run(part, start + len(part))

    def _run(self, part: list[int], total: int) -> FloatArray:
        import onnxruntime

        binding: Any = self._session.io_binding()
        binding.bind_cpu_input("input_ids", np.array([part], dtype=np.int64))
        binding.bind_cpu_input("seqlens_k", np.array([total - 1], dtype=np.int32))
        binding.bind_cpu_input("total_sequence_length", np.array([total], dtype=np.int32))
        binding.bind_cpu_input("out_index", np.arange(len(part), dtype=np.int64))
        binding.bind_output("logits")  # first bound, first among the outputs
        for index, memory in enumerate(self._cache):
            layer, side = index // 2, "kv"[index % 2]
            value = onnxruntime.OrtValue.ortvalue_from_numpy(memory)  # shares the memory
            binding.bind_ortvalue_input(f"past_{side}.{layer}", value)
            binding.bind_ortvalue_output(f"present_{side}.{layer}", value)
        self._session.run_with_iobinding(binding)
        logits: FloatArray = binding.get_outputs()[0].numpy()
        return logits


@dataclass
class _Sums:
    """What is summed over the positions for one graph."""

    surprise: float = 0.0
    divergence: float = 0.0
    agreed: int = 0

    def add(self, logits: FloatArray, true_log: FloatArray, wanted: NDArray[np.int64]) -> None:
        """Add positions with the graph's ``logits``, the reference's distributions, and the true tokens."""
        own_log = _log_softmax(logits)
        self.surprise -= float(own_log[np.arange(len(wanted)), wanted].sum(dtype=np.float64))
        self.agreed += int((own_log.argmax(axis=1) == true_log.argmax(axis=1)).sum())
        np.subtract(true_log, own_log, out=own_log)
        self.divergence += float(np.einsum("ij,ij->i", np.exp(true_log), own_log).sum(dtype=np.float64))


def measure(
    graphs: dict[ProfileName, Path], reference: Path, config: DecoderConfig, tokens: list[int], sample: str
) -> list[Quality]:
    """Compare ``graphs``, by the profile they are for, with the float graph ``reference`` on ``tokens``.

    Return for each its perplexity (with the reference's own), mean Kullback-Leibler divergence of the
    graph's distribution from the reference's in nats, and the share of positions where both have the
    same most likely token. Raises BuildError when the sample gives fewer than MIN_POSITIONS positions.
    """
    cores = Cores()
    ours = {profile: TeacherForcing(graph, config, cores) for profile, graph in graphs.items()}
    theirs = TeacherForcing(reference, config, cores)
    window = min(WINDOW, config.context_length)
    sums = {profile: _Sums() for profile in graphs}
    surprise, positions = 0.0, 0
    for start in range(0, len(tokens) - 1, window):
        # The last token of a window has its successor in the next one, so every token but the first is predicted.
        inputs = tokens[start : start + window]
        targets = np.array(tokens[start + 1 : start + window + 1])
        runs = zip(*(forcing.logits(inputs) for forcing in ours.values()), strict=True)
        for true, own in zip(theirs.logits(inputs), runs, strict=True):
            wanted, targets = targets[: len(true)], targets[len(true) :]
            true_log = _log_softmax(true[: len(wanted)])
            surprise -= float(true_log[np.arange(len(wanted)), wanted].sum(dtype=np.float64))
            positions += len(wanted)
            for profile, logits in zip(graphs, own, strict=True):
                sums[profile].add(logits[: len(wanted)], true_log, wanted)
    if positions < MIN_POSITIONS:
        raise BuildError(f"the sample text gives {positions} positions, {MIN_POSITIONS} are needed")
    where = f"{sample}, {positions} positions in windows of {window}"
    figures: list[Quality] = []
    for profile, own_sums in sums.items():
        for metric, value, source in (
            ("perplexity", np.exp(own_sums.surprise / positions), np.exp(surprise / positions)),
            ("kl_divergence", own_sums.divergence / positions, 0.0),
            ("top1_agreement", own_sums.agreed / positions, 1.0),
        ):
            figures.append(
                Quality(
                    metric=metric,
                    value=float(value),
                    reference=float(source),
                    sample=where,
                    profile=None if profile == "exact" else profile,
                )
            )
    return figures


def _log_softmax(logits: FloatArray) -> FloatArray:
    """Return log probabilities float32, row by row, stable for large logits."""
    shifted: FloatArray = logits - logits.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted
