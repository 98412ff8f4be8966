"""Reranking with the real default model: order, truncation, large requests, token counts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from tokenizers import Encoding, Tokenizer

from appliance.engines.encoding.reranking import RerankEngine
from appliance.engines.encoding.tokenizer import TextTokenizer
from appliance.engines.errors import InputRefusedError
from tests.engines.encoding.waiting import until
from tests.packs_fixture import built_pack

QUERY = "how long does a refund take"
DOCUMENTS = [
    "The lighthouse was painted white in spring.",
    "Refunds are paid within five working days after we have received the goods.",
    "Our refund policy covers all goods bought in the shop.",
    "Bananas.",
]


async def test_the_answer_comes_first(reranker: RerankEngine) -> None:
    scores = await reranker.score(QUERY, DOCUMENTS)
    assert scores.logits.shape == (4,)
    assert scores.logits.dtype == np.float32
    assert list(np.argsort(-scores.logits)[:2]) == [1, 2]


async def test_scores_do_not_depend_on_the_other_documents(reranker: RerankEngine) -> None:
    documents = [*DOCUMENTS, "filler " * 300, "Refunds " * 40]
    together = await reranker.score(QUERY, documents)
    for document, logit in zip(documents, together.logits, strict=True):
        alone = await reranker.score(QUERY, [document])
        assert alone.logits[0] == pytest.approx(logit, abs=1e-3)


async def test_order_follows_the_documents(reranker: RerankEngine) -> None:
    forward = await reranker.score(QUERY, DOCUMENTS)
    backward = await reranker.score(QUERY, DOCUMENTS[::-1])
    np.testing.assert_allclose(forward.logits, backward.logits[::-1], atol=1e-3)


async def test_prompt_tokens_are_those_of_the_models_own_tokenizer(reranker: RerankEngine) -> None:
    tokenizer = Tokenizer.from_file(str(built_pack("ms-marco-minilm-l-12-v2") / "tokenizer.json"))
    tokenizer.enable_truncation(512, strategy="longest_first")
    documents = [*DOCUMENTS, "a long tale of a long road " * 200]
    scores = await reranker.score(QUERY, documents)
    assert scores.prompt_tokens == sum(len(tokenizer.encode(QUERY, document).ids) for document in documents)


async def test_a_query_that_fills_the_context_is_cut_too(reranker: RerankEngine) -> None:
    scores = await reranker.score("refund " * 30_000, ["Refunds take five days.", "long " * 40_000])
    assert np.isfinite(scores.logits).all()
    assert scores.prompt_tokens == 2 * reranker.context_length


async def test_empty_texts_are_scored(reranker: RerankEngine) -> None:
    scores = await reranker.score("", ["", "something"])
    assert np.isfinite(scores.logits).all()


async def test_no_documents_is_refused(reranker: RerankEngine) -> None:
    with pytest.raises(InputRefusedError):
        await reranker.score(QUERY, [])


async def test_the_largest_request_is_prepared_without_holding_the_loop(
    reranker: RerankEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [f"{number} " + "a tale of roads and rivers " * 4_500 for number in range(2048)]
    assert all(len(document) <= 122_880 for document in documents)
    threads: set[int] = set()
    encode = TextTokenizer.encode

    def noted(self: TextTokenizer, texts: list[str], **options: bool) -> Iterator[Encoding]:
        threads.add(threading.get_ident())
        return encode(self, texts, **options)

    monkeypatch.setattr(TextTokenizer, "encode", noted)
    scoring = asyncio.create_task(reranker.score(QUERY, documents))
    await until(lambda: reranker.queued_tokens > 0)
    # Another request does not have to wait for the million tokens in front of it.
    assert (await reranker.score(QUERY, DOCUMENTS)).logits.argmax() == 1
    assert not scoring.done()
    scoring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await scoring
    assert reranker.queued_tokens == 0
    assert threads
    assert threading.get_ident() not in threads


async def test_what_is_not_admitted_is_never_read_by_the_model(
    reranker: RerankEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    admitted: list[int] = []
    scores = await reranker.score(QUERY, DOCUMENTS, admit=admitted.append)
    assert admitted == [scores.prompt_tokens]

    def refuse(tokens: int) -> None:
        assert tokens == scores.prompt_tokens
        raise InputRefusedError("Insufficient budget.", param="documents")

    monkeypatch.setattr(reranker._batcher, "run", None)  # to call it would be an error of another type
    with pytest.raises(InputRefusedError, match="Insufficient budget"):
        await reranker.score(QUERY, DOCUMENTS, admit=refuse)
