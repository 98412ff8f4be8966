"""Generation beside llama.cpp: the same weights, the same client, the same prompts, over HTTP on both sides.

Greedy on both; prompts are cold on both. A stream that ends early (the model said so) would leave
less work than asked for, so such a round is drawn again with other prompts.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from appliance.packs.manifest import read_manifest
from model_packs.build import describe
from tests.benchmarks.figures import OURS, Comparison, Figure, Round, alternate, in_turns
from tests.benchmarks.http_client import Connection
from tests.benchmarks.llama_cpp import SOURCE, built_tools, running_llama_server
from tests.benchmarks.memory import peak_memory
from tests.benchmarks.prompts import ColdPrompts
from tests.benchmarks.section import Plan, Section
from tests.benchmarks.sources import install_pack, package_files, recipe_members
from tests.service import CHAT, running_service

PATH = "/v1/completions"
PEER = "llama.cpp"
GGUF = "model.gguf"
REDRAWS = 8


@dataclass(frozen=True)
class Side:
    """One server, how to reach it, and what it wants in the body beside the usual fields."""

    base_url: str
    model: str
    key: str
    extra: Mapping[str, Any]

    async def complete(self, prompt: list[int], tokens: int) -> Stream | None:
        """Continue ``prompt`` by ``tokens`` tokens; None when the model stopped before. Raises RuntimeError."""
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.extra,
        }
        async with Connection(self.base_url, self.key) as connection:
            answer = await connection.post(PATH, body)
        times: list[float] = []
        made = 0
        for seconds, event in answer.events():
            if "error" in event:
                raise RuntimeError(str(event["error"]))
            if any(choice.get("text") for choice in event.get("choices", ())):
                times.append(seconds)
            if event.get("usage"):
                made = event["usage"]["completion_tokens"]
        if made != tokens or not times:
            return None
        return Stream(times[0], times[-1], tokens - 1, answer.seconds)


@dataclass(frozen=True)
class Stream:
    """When the first and the last text came (seconds since the request), and the tokens between them."""

    first: float
    last: float
    tokens_between: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """The speed after the first token."""
        return self.tokens_between / (self.last - self.first)


@dataclass(frozen=True)
class Scenario:
    """``streams`` requests at once, each ``prompt`` tokens long and continued by ``tokens``."""

    name: str
    streams: int
    prompt: int
    tokens: int
    figures: tuple[Figure, ...]

    async def run(self, side: Side, prompts: list[list[int]]) -> dict[str, float] | None:
        """Return every figure's value; None when a stream ended early."""
        answers = await asyncio.gather(*(side.complete(prompt, self.tokens) for prompt in prompts))
        streams = [stream for stream in answers if stream is not None]
        if len(streams) < len(answers):
            return None
        if self.tokens == 1:
            speed = self.prompt / streams[0].seconds
        elif self.streams == 1:
            speed = streams[0].tokens_per_second
        else:
            speed = self.streams * self.tokens / max(stream.seconds for stream in streams)
        first = statistics.median(stream.first for stream in streams) * 1000
        return {figure.name: value for figure, value in zip(self.figures, (speed, first), strict=False)}


def _speed(name: str) -> Figure:
    return Figure(name=name, unit="tokens/s", higher_is_better=True)


def _wait(name: str) -> Figure:
    return Figure(name=name, unit="ms", higher_is_better=False, digits=0)


SCENARIOS = (
    Scenario("prefill", 1, 512, 1, (_speed("prefill, 512-token prompt"),)),
    Scenario(
        "decode",
        1,
        32,
        128,
        (_speed("decode, 1 stream, from an almost empty context"), _wait("first token, 32-token prompt")),
    ),
    Scenario("deep decode", 1, 1000, 64, (_speed("decode, 1 stream, at depth 1000"),)),
    Scenario(
        "4 streams",
        4,
        128,
        64,
        (
            _speed("4 streams, 128-token prompts + 64, all tokens made"),
            _wait("first token, median of 4 streams"),
        ),
    ),
    Scenario(
        "8 streams",
        8,
        128,
        64,
        (
            _speed("8 streams, 128-token prompts + 64, all tokens made"),
            _wait("first token, median of 8 streams"),
        ),
    ),
)
MOST_STREAMS = max(scenario.streams for scenario in SCENARIOS)
CONTEXT = 2048


def rounds_of(scenario: Scenario, sides: Mapping[str, Side], prompts: ColdPrompts) -> Round:
    """Return the function that measures one round of ``scenario`` on every side in turn."""

    def turn(side: Side, drawn: list[list[int]]) -> Callable[[], dict[str, float] | None]:
        return lambda: asyncio.run(scenario.run(side, drawn))

    def measure(number: int) -> dict[str, dict[str, float]]:
        for draw in range(REDRAWS):
            seed = f"{scenario.name} {number} {draw}"
            drawn = [prompts.ids(f"{seed} {index}", scenario.prompt) for index in range(scenario.streams)]
            values = in_turns({name: turn(side, drawn) for name, side in sides.items()})
            whole = {name: value for name, value in values.items() if value is not None}
            if len(whole) == len(values):
                return whole
        raise RuntimeError(f"{scenario.name}: {REDRAWS} draws of prompts all ended early")

    return measure


def run(plan: Plan) -> Section:
    """Measure every scenario. Raises RuntimeError when a server fails."""
    tools = built_tools(plan.python.parents[1], plan.build_jobs)
    data_dir = plan.work / "chat"
    pack = install_pack(CHAT, data_dir)
    manifest = read_manifest(pack)
    assert manifest.decoder is not None
    prompts = ColdPrompts(pack / manifest.decoder.tokenizer)
    gguf = package_files(CHAT, plan.work, recipe_members(CHAT, {GGUF}))[GGUF]
    log = plan.work / "llama-server.log"
    with (
        running_service(data_dir, APPLIANCE_THREADS=str(plan.threads)) as service,
        running_llama_server(
            tools, gguf, log, threads=plan.threads, slots=MOST_STREAMS, context=CONTEXT
        ) as llama,
    ):
        sides = {
            OURS: Side(service.base_url, CHAT, service.key, {}),
            # A peer that found earlier prompts in its cache would do less work.
            PEER: Side(llama.base_url, CHAT, "", {"cache_prompt": False}),
        }
        comparisons: list[Comparison] = []
        for scenario in SCENARIOS:
            measure = rounds_of(scenario, sides, prompts)
            comparisons += alternate(scenario.figures, measure, plan.rounds, plan.say)
        memory = {
            "the service, chat pack only": peak_memory(service.process.pid),
            f"llama-server with {MOST_STREAMS} slots of {CONTEXT} tokens": peak_memory(llama.pid),
        }
        version = llama.version
    quality = "; ".join(describe(figure) for figure in manifest.quality)
    return Section(
        title="Generation",
        method=(
            f"{CHAT}: llama-server on the GGUF file itself, the service on the pack built from it; "
            f"{plan.threads} threads on each side. Same HTTP client, `/v1/completions` with token ids, greedy. "
            "Every prompt is new (random words); llama-server also gets `cache_prompt: false`."
        ),
        comparisons=comparisons,
        checks=[
            "Every stream made exactly the number of tokens asked for, on both sides.",
            f"The pack against the dequantised weights: {quality}.",
        ],
        memory=memory,
        versions=[f"llama.cpp {version} from {SOURCE.filename} ({tools.description})"],
    )
