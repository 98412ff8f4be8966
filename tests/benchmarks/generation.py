"""Generation beside llama.cpp: the same weights, the same client, the same prompts, over HTTP on both sides.

Every profile of the service and every way to run llama.cpp takes its turn in the same round, so that
one run compares each with each. Greedy everywhere, and every answer has the length asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.config import load_settings
from appliance.packs.manifest import ProfileName
from tests.benchmarks import generation_costs
from tests.benchmarks.chat_model import Model, chat_model
from tests.benchmarks.completions import Side
from tests.benchmarks.engine_process import running_engine
from tests.benchmarks.figures import Comparison, alternate
from tests.benchmarks.generation_memory import holdings
from tests.benchmarks.generation_scenarios import (
    DEEP_CONTEXT,
    MANY,
    MEMORY_MANY,
    MEMORY_ONE,
    ONE,
    SLOT_CONTEXT,
    SLOTS,
    measuring,
)
from tests.benchmarks.generation_sections import own_section, profile_section
from tests.benchmarks.llama_cpp import SOURCE, WAYS, LlamaServer, Tools, built_tools, running_llama_server
from tests.benchmarks.memory import peak_memory
from tests.benchmarks.prompts import ColdPrompts
from tests.benchmarks.section import Plan, Section
from tests.benchmarks.sources import install_pack
from tests.service import Service, running_service


@dataclass(frozen=True)
class Peer:
    """llama.cpp run in one way: a server with a slot for every stream, and one with a single deep slot."""

    wide: LlamaServer
    deep: LlamaServer


# Longer requests take long, and what they use is warm from the shorter ones.
MOST_TO_WARM = 2048
# The servers of a peer, in its order: slots, and the context of each. A shared KV buffer (--kv-unified) is slower.
SERVERS = ((SLOTS, SLOT_CONTEXT), (1, DEEP_CONTEXT))


def run(plan: Plan) -> list[Section]:
    """Measure every scenario on every model of the plan. Raises RuntimeError when a server fails."""
    tools = built_tools(plan.python.parents[1], plan.build_jobs)
    return [
        section
        for name in plan.chat_models
        for section in _model_sections(plan, tools, chat_model(plan, name))
    ]


def _settings(plan: Plan, profile: ProfileName) -> dict[str, str]:
    return {"APPLIANCE_THREADS": str(plan.threads), "APPLIANCE_GENERATION_PROFILE": profile}


def _model_sections(plan: Plan, tools: Tools, model: Model) -> list[Section]:
    data_dirs = {profile: _own_data_dir(plan, model, profile) for profile in model.profiles}
    settings = {profile: _settings(plan, profile) for profile in model.profiles}
    held = {
        profile: holdings(plan, model, profile, data_dirs[profile], settings[profile])
        for profile in model.profiles
    }
    source = ColdPrompts(model.pack / model.decoder.tokenizer)
    # The faster the engine, the more a constraint and HTTP weigh.
    fastest = model.profiles[-1]
    with ExitStack() as stack:
        services = {
            profile: stack.enter_context(running_service(data_dirs[profile], **settings[profile]))
            for profile in model.profiles
        }
        peers = {name: stack.enter_context(_running_peer(plan, tools, model, name)) for name in plan.peers}
        comparisons = _beside_peers(plan, model, services, peers, source)
        # In the service's data directory, to run with what its self-benchmark has found.
        folder = {"APPLIANCE_DATA_DIR": str(data_dirs[fastest])}
        engine = stack.enter_context(running_engine(model.pack, **settings[fastest], **folder))
        own = generation_costs.costs(plan, _service_side(model, services[fastest]), engine, source)
        version = next(iter(peers.values())).wide.version
    versions = [f"llama.cpp {version} from {SOURCE.filename} ({tools.description})"]
    return [
        *(
            profile_section(plan, model, profile, comparisons, versions, _tuning(data_dirs[profile]))
            for profile in model.profiles
        ),
        own_section(model, fastest, own, held),
    ]


def _own_data_dir(plan: Plan, model: Model, profile: ProfileName) -> Path:
    """Return a data directory with the pack for one more service."""
    data_dir = plan.work / f"{model.name}-{profile}"
    install_pack(model.name, data_dir)
    return data_dir


def _tuning(data_dir: Path) -> str:
    """Return what the service's self-benchmark chose, in words."""
    kept = load_settings(environment={"APPLIANCE_DATA_DIR": str(data_dir)}).tuning_path
    if not kept.is_file():
        return "nothing, the machine was too busy"
    return "; ".join(
        ", ".join(f"{name} {value}" for name, value in chosen.items())
        for chosen in json.loads(kept.read_text("utf-8")).values()
    )


@contextmanager
def _running_peer(plan: Plan, tools: Tools, model: Model, name: str) -> Iterator[Peer]:
    """Run llama.cpp in the way ``name``."""
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                running_llama_server(
                    tools,
                    model.gguf,
                    plan.work / f"{model.name}-{list(WAYS).index(name)}-{place}.log",
                    threads=plan.threads,
                    slots=slots,
                    context=context,
                    flags=WAYS[name],
                )
            )
            for place, (slots, context) in enumerate(SERVERS)
        ]
        yield Peer(*servers)


def _service_side(model: Model, service: Service) -> Side:
    # Text for every token, so that the first one is seen when it comes, whatever it is.
    return Side(service.base_url, model.name, service.key, {"skip_special_tokens": False})


def _peer_side(model: Model, server: LlamaServer) -> Side:
    return Side(server.base_url, model.name, extra={"cache_prompt": True}, cold={"cache_prompt": False})


def _beside_peers(
    plan: Plan,
    model: Model,
    services: Mapping[ProfileName, Service],
    peers: Mapping[str, Peer],
    source: ColdPrompts,
) -> list[Comparison]:
    """Measure every scenario, those of many streams first: the memory is read after them and at the end."""
    ours: dict[str, Side] = {profile: _service_side(model, service) for profile, service in services.items()}
    wide = ours | {name: _peer_side(model, peer.wide) for name, peer in peers.items()}
    deep = ours | {name: _peer_side(model, peer.deep) for name, peer in peers.items()}
    found: list[Comparison] = []
    for scenarios, servers, figure in ((MANY, wide, MEMORY_MANY), (ONE, deep, MEMORY_ONE)):
        for scenario in scenarios:
            found += alternate(
                scenario.figures,
                measuring(scenario, servers, source),
                plan.rounds,
                plan.say,
                services=tuple(services),
                warm_up=scenario is scenarios[0] or (plan.warm_up and scenario.context <= MOST_TO_WARM),
            )
        found += [
            Comparison(
                figure=figure,
                service=profile,
                peer=name,
                ours=[peak_memory(service.process.pid)],
                theirs=[peak_memory((peer.wide if figure is MEMORY_MANY else peer.deep).pid)],
            )
            for profile, service in services.items()
            for name, peer in peers.items()
        ]
    return found
