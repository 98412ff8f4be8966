"""How much an encoder lost by quantisation, on texts of our own (``samples/``), and whether a batch disturbs it."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from appliance.engines.encoding.forward import EncoderGraph, Floats, TokenSequence
from appliance.engines.encoding.tokenizer import TextTokenizer, longest_first
from appliance.packs.manifest import Quality

SAMPLES = Path(__file__).parent / "samples"


class RankedSample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A query and documents, some of which answer it."""

    query: str
    documents: list[str]


def sentences() -> list[str]:
    """Return the sample sentences."""
    return (SAMPLES / "sentences.txt").read_text(encoding="utf-8").splitlines()


def ranked_samples() -> list[RankedSample]:
    """Return the sample queries with their documents."""
    return msgspec.json.decode((SAMPLES / "rerank.json").read_bytes(), type=list[RankedSample])


def embedding_quality(
    graph: EncoderGraph, reference: npt.NDArray[np.float32], sequences: list[TokenSequence]
) -> list[Quality]:
    """Compare the graph's vectors of ``sequences`` with unit ``reference`` vectors, float32 [n, H]."""
    alone = np.concatenate([graph.vectors([sequence]) for sequence in sequences])
    batched = graph.vectors(sequences)
    cosines = (alone * reference).sum(axis=1)
    sample = f"{len(sequences)} sentences (samples/sentences.txt)"
    return [
        Quality(metric="cosine_mean", value=float(cosines.mean()), sample=sample),
        Quality(metric="cosine_min", value=float(cosines.min()), sample=sample),
        Quality(metric="batch_cosine_min", value=float((alone * batched).sum(axis=1).min()), sample=sample),
    ]


def rerank_quality(
    graph: EncoderGraph, reference: npt.NDArray[np.float32], sequences: list[TokenSequence]
) -> list[Quality]:
    """Compare the graph's scores and order of the ranked samples with ``reference`` logits, float32 [n, 1]."""
    alone = scores(np.concatenate([graph.logits([sequence]) for sequence in sequences]))
    wanted = scores(reference)
    taus: list[float] = []
    same_first: list[bool] = []
    batch_difference, start = 0.0, 0
    samples = ranked_samples()
    for ranked in samples:
        rows = slice(start, start + len(ranked.documents))
        start = rows.stop
        batched = scores(graph.logits(sequences[rows]))
        batch_difference = max(batch_difference, float(np.abs(alone[rows] - batched).max()))
        taus.append(kendall_tau(alone[rows], wanted[rows]))
        same_first.append(bool(alone[rows].argmax() == wanted[rows].argmax()))
    difference = float(np.abs(alone - wanted).max())
    sample = f"{len(samples)} queries, {len(sequences)} documents (samples/rerank.json)"
    return [
        Quality(metric="kendall_tau", value=float(np.mean(taus)), sample=sample),
        Quality(metric="top1_agreement", value=float(np.mean(same_first)), sample=sample),
        Quality(metric="score_difference_max", value=difference, sample=sample),
        Quality(metric="batch_score_difference_max", value=batch_difference, sample=sample),
    ]


def sample_sequences(task: str, tokenizer: TextTokenizer, context_length: int) -> list[TokenSequence]:
    """Return the samples of a task ("rerank" or another) as the engine reads them, in a fixed order."""
    if task != "rerank":
        encodings = tokenizer.encode(sentences())
        return [
            TokenSequence(np.array(encoding.ids[:context_length], dtype=np.int64)) for encoding in encodings
        ]
    template = tokenizer.pair_template()
    budget = context_length - template.special_tokens
    pairs = []
    for ranked in ranked_samples():
        (first,) = tokenizer.first_tokens([ranked.query], budget + 1)
        for second in tokenizer.first_tokens(ranked.documents, budget + 1):
            keep_first, keep_second = longest_first(len(first), len(second), budget)
            pairs.append(template.join(first[:keep_first], second[:keep_second]))
    return pairs


def calibration_sequences(task: str, tokenizer: TextTokenizer, context_length: int) -> list[TokenSequence]:
    """Return texts to look at activations with: none of them is among the task's samples."""
    ranked = ranked_samples()
    measured = {text for entry in ranked for text in (entry.query, *entry.documents)}
    texts = sentences() if task == "rerank" else sorted(measured)
    unseen = measured if task == "rerank" else set(sentences())
    encodings = tokenizer.encode([text for text in texts if text not in unseen])
    return [TokenSequence(np.array(encoding.ids[:context_length], dtype=np.int64)) for encoding in encodings]


def scores(logits: Floats) -> npt.NDArray[np.float64]:
    """Return the logistic function of logits [n, 1], float64 [n]."""
    return np.asarray(1 / (1 + np.exp(-logits[:, 0].astype(np.float64))))


def kendall_tau(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float:
    """Return Kendall's tau-a of two rankings: 1 the same order, -1 the opposite."""
    signs = [
        float(np.sign(first[i] - first[j]) * np.sign(second[i] - second[j]))
        for i, j in itertools.combinations(range(len(first)), 2)
    ]
    return sum(signs) / len(signs)
