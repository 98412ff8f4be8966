"""One forward pass of an encoder graph over a padded batch, and the pooling of its output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from appliance.engines.cores import Cores
from appliance.packs.errors import PackError
from appliance.packs.manifest import Encoder

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

GRAPH_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}


class TokenSequence(NamedTuple):
    """Token ids int64 [S], and their segment ids int64 [S] (None: all 0)."""

    ids: Ids
    type_ids: Ids | None = None


def pad(batch: list[TokenSequence], pad_token_id: int) -> dict[str, Ids]:
    """Return ``input_ids``, ``attention_mask`` and ``token_type_ids``, int64 [B, longest], padded on the right."""
    shape = (len(batch), max(len(sequence.ids) for sequence in batch))
    input_ids = np.full(shape, pad_token_id, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    token_type_ids = np.zeros(shape, dtype=np.int64)
    for row, sequence in enumerate(batch):
        length = len(sequence.ids)
        input_ids[row, :length] = sequence.ids
        attention_mask[row, :length] = 1
        if sequence.type_ids is not None:
            token_type_ids[row, :length] = sequence.type_ids
    return {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}


def pool(hidden: Floats, attention_mask: Ids, pooling: Literal["cls", "mean", "none"]) -> Floats:
    """Reduce hidden states [B, S, H] to one unit vector a row, float32 [B, H].

    "none" takes a graph that pools by itself ([B, H]) and only normalises.
    """
    if pooling == "cls":
        vectors = hidden[:, 0]
    elif pooling == "mean":
        mask = attention_mask[:, :, None].astype(np.float32)
        vectors = (hidden * mask).sum(axis=1) / mask.sum(axis=1)
    else:
        vectors = hidden
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)


class EncoderGraph:
    """An encoder's session: embeddings or cross-encoder logits of a batch. Not for several threads at once."""

    def __init__(self, session: Any, encoder: Encoder) -> None:
        self._session = session
        self._encoder = encoder
        self._inputs = {node.name for node in session.get_inputs()}
        outputs = [node.name for node in session.get_outputs()]
        self._output = encoder.output or outputs[0]
        if "input_ids" not in self._inputs or not self._inputs <= GRAPH_INPUTS:
            raise PackError(f"the encoder graph has inputs this engine does not know: {sorted(self._inputs)}")
        if self._output not in outputs:
            raise PackError(f"the encoder graph has no output {self._output!r}")

    def vectors(self, batch: list[TokenSequence]) -> Floats:
        """Return one unit vector per sequence, float32 [B, dimensions]."""
        hidden, mask = self._run(batch)
        return pool(hidden, mask, self._encoder.pooling)

    def logits(self, batch: list[TokenSequence]) -> Floats:
        """Return one relevance logit per sequence, float32 [B, 1]. Raises PackError when the graph gives others."""
        logits, _ = self._run(batch)
        if logits.size != len(batch):
            raise PackError(f"the cross-encoder gives {logits.shape[1:]} values a pair, expected one logit")
        return np.asarray(logits, dtype=np.float32).reshape(len(batch), 1)

    def _run(self, batch: list[TokenSequence]) -> tuple[Floats, Ids]:
        feed = pad(batch, self._encoder.pad_token_id)
        (output,) = self._session.run(
            [self._output], {name: value for name, value in feed.items() if name in self._inputs}
        )
        return output, feed["attention_mask"]


def open_graph(pack_dir: Path, encoder: Encoder, cores: Cores) -> EncoderGraph:
    """Open the pack's graph. Raises PackError when ONNX Runtime refuses it."""
    try:
        session = cores.session(pack_dir / encoder.graph)
    except Exception as error:  # ONNX Runtime's errors have no common public class
        raise PackError(f"cannot load {encoder.graph}: {error}") from error
    return EncoderGraph(session, encoder)


def run_probe(forward: Callable[[list[TokenSequence]], Floats], batch: list[TokenSequence]) -> Floats:
    """Return ``forward`` of ``batch``. Raises PackError when it fails or its values are not finite."""
    try:
        rows = forward(batch)
    except PackError:
        raise
    except Exception as error:  # ONNX Runtime's errors have no common public class
        raise PackError(f"the encoder graph does not run: {error}") from error
    if not np.isfinite(rows).all():
        raise PackError("the encoder graph gives values that are not numbers")
    return rows
