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
    graph: EncoderGraph, reference: EncoderGraph, tokenizer: TextTokenizer, context_length: int
) -> list[Quality]:
    """Compare the graph's scores and order of the ranked samples with those of ``reference``."""
    differences: list[float] = []
    batch_differences: list[float] = []
    taus: list[float] = []
    same_first: list[bool] = []
    samples = ranked_samples()
    for ranked in samples:
        pairs = pair_sequences(tokenizer, ranked.query, ranked.documents, context_length)
        batched = scores(graph.logits(pairs))
        alone = scores(np.concatenate([graph.logits([pair]) for pair in pairs]))
        wanted = scores(np.concatenate([reference.logits([pair]) for pair in pairs]))
        differences.append(float(np.abs(alone - wanted).max()))
        batch_differences.append(float(np.abs(alone - batched).max()))
        taus.append(kendall_tau(alone, wanted))
        same_first.append(bool(alone.argmax() == wanted.argmax()))
    documents = sum(len(ranked.documents) for ranked in samples)
    sample = f"{len(samples)} queries, {documents} documents (samples/rerank.json)"
    return [
        Quality(metric="kendall_tau", value=float(np.mean(taus)), sample=sample),
        Quality(metric="top1_agreement", value=float(np.mean(same_first)), sample=sample),
        Quality(metric="score_difference_max", value=max(differences), sample=sample),
        Quality(metric="batch_score_difference_max", value=max(batch_differences), sample=sample),
    ]


def sentence_sequences(tokenizer: TextTokenizer, context_length: int) -> list[TokenSequence]:
    """Return the sample sentences as the engine would read them (none is longer than the context)."""
    encodings = tokenizer.encode(sentences())
    return [TokenSequence(np.array(encoding.ids[:context_length], dtype=np.int64)) for encoding in encodings]


def pair_sequences(
    tokenizer: TextTokenizer, query: str, documents: list[str], context_length: int
) -> list[TokenSequence]:
    """Return the pairs of a query with each document as the engine would read them."""
    template = tokenizer.pair_template()
    budget = context_length - template.special_tokens
    (first,) = tokenizer.first_tokens([query], budget + 1)
    pairs = []
    for second in tokenizer.first_tokens(documents, budget + 1):
        keep_first, keep_second = longest_first(len(first), len(second), budget)
        pairs.append(template.join(first[:keep_first], second[:keep_second]))
    return pairs


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
