"""What the running service holds, against its weights and the keys and values of what it is generating."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import onnx

from appliance.engines.generation.scheduling.kv_cache import bytes_per_token
from appliance.packs.manifest import ProfileName
from tests.benchmarks.chat_model import Model
from tests.benchmarks.completions import Side
from tests.benchmarks.memory import MEGABYTE, resident_memory
from tests.benchmarks.prompts import ColdPrompts
from tests.benchmarks.section import Plan
from tests.service import Service, running_service

PROMPT, STREAMS = 512, (1, 8, 16)
# Long enough that the first stream still runs when the last one has read its prompt.
MOST_TOKENS = 1000
MOST_SURPLUS = 1.15


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """Resident memory in one state, and what it should consist of (MB)."""

    state: str
    resident: float
    program: float
    weights: float
    kv: float

    @property
    def share(self) -> float:
        """Resident memory over the sum of its parts."""
        return self.resident / (self.program + self.weights + self.kv)


def holdings(
    plan: Plan, model: Model, profile: ProfileName, data_dir: Path, settings: Mapping[str, str]
) -> list[Holding]:
    """Start the service and read what it holds after loading, and with 1, 8 and 16 streams running.

    ``kv`` is what the service itself says that it holds, cached prompts included; a state whose
    streams need more than that raises RuntimeError.
    """
    source = ColdPrompts(model.pack / model.decoder.tokenizer)
    with running_service(plan.work / "no-pack", **settings) as bare:
        program = resident_memory(bare.process.pid)
    prompts = [source.ids(f"memory {index}", PROMPT) for index in range(max(STREAMS))]
    with running_service(data_dir, **settings) as service:  # measures once what suits the machine
        weights = weights_bytes(service.chat_graph(model.name)) / MEGABYTE
    found: list[Holding] = []
    with running_service(data_dir, **settings) as service:
        for count in (0, *STREAMS):
            resident, kv, tokens = asyncio.run(_while_running(service, model, prompts[:count]))
            streams = f"{count} stream{'s' * (count > 1)}, {tokens:,} tokens"
            found.append(
                Holding(
                    state=streams if count else "loaded",
                    resident=resident,
                    program=program,
                    weights=weights,
                    kv=kv,
                )
            )
            plan.say(
                f"  {profile}, memory, {found[-1].state}: {resident:.0f} MB, {found[-1].share:.2f} of its parts"
            )
    return found


def weights_bytes(graph: Path) -> int:
    """Return the bytes of a graph and of the weights that it names, each once."""
    pieces: set[tuple[Path, int, int]] = set()
    for tensor in onnx.load(graph, load_external_data=False).graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if "location" in place:
            file = graph.parent / place["location"]
            start = int(place.get("offset", 0))
            pieces.add((file, start, int(place.get("length", file.stat().st_size - start))))
    return graph.stat().st_size + sum(length for _, _, length in pieces)


async def _while_running(
    service: Service, model: Model, prompts: list[list[int]]
) -> tuple[float, float, int]:
    """Return the resident memory and the keys and values while every prompt is being continued, and the tokens."""
    side = Side(service.base_url, model.name, service.key)
    events = [0] * len(prompts)

    def counter(index: int) -> Callable[[bytes], None]:
        def count(piece: bytes) -> None:
            events[index] += piece.count(b"data: ")

        return count

    tasks = [
        asyncio.create_task(side.complete(prompt, MOST_TOKENS, on_piece=counter(index)))
        for index, prompt in enumerate(prompts)
    ]
    try:
        while not all(events):
            done = [task for task in tasks if task.done()]
            if done:
                raise RuntimeError("a stream ended before all of them were running") from done[0].exception()
            await asyncio.sleep(0.02)
        tokens = sum(map(len, prompts)) + sum(events)
        resident, kv = resident_memory(service.process.pid), _kv_bytes(service) / MEGABYTE
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    decoder = model.decoder
    token = bytes_per_token(layers=decoder.layers, kv_heads=decoder.kv_heads, head_dim=decoder.head_dim)
    # An event may come a step before its token is in the cache.
    if kv * MEGABYTE < (tokens - 2 * len(prompts)) * token:
        raise RuntimeError(f"the service says that {tokens} tokens take {kv:.1f} MB")
    return resident, kv, tokens


def _kv_bytes(service: Service) -> float:
    """Return the bytes of keys and values that the service says it holds."""
    with service.http as client:
        text = client.get("/metrics").raise_for_status().text
    found = re.search(r"^appliance_engine_kv_cache_bytes\{.*?\} (\S+)$", text, re.MULTILINE)
    if found is None:
        raise RuntimeError("the service does not say how much its keys and values take")
    return float(found[1])
