"""What the report says of generation: a table for each profile, and one of the service beside itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from appliance.packs.manifest import ProfileName
from tests.benchmarks import generation_costs
from tests.benchmarks.chat_model import Model
from tests.benchmarks.figures import Comparison
from tests.benchmarks.generation_memory import MOST_SURPLUS, PROMPT, Holding
from tests.benchmarks.generation_scenarios import BOUNDS, DEEP_CONTEXT, SLOT_CONTEXT, SLOTS, WANTED
from tests.benchmarks.llama_cpp import WAYS, has_amx
from tests.benchmarks.section import Plan, Section


def profile_section(
    plan: Plan,
    model: Model,
    profile: ProfileName,
    comparisons: Sequence[Comparison],
    versions: list[str],
    tuning: str,
) -> Section:
    """Return the table of one profile beside its peers."""
    return Section(
        title=f"Generation, {model.name}, profile {profile}",
        method=(
            f"{model.name} ({model.manifest.parameters / 1e6:.0f} M parameters): {_listed(plan.peers)} on "
            "the GGUF file itself, the service on the pack built from it; "
            f"{plan.threads} threads on each side. Same HTTP client, `/v1/completions` with token ids, greedy, "
            "`ignore_eos`. Every prompt is new (random words), and llama-server also gets `cache_prompt: false`, but "
            "for the shared prefix, where it gets `cache_prompt: true`. "
            "llama-server runs with its default flags (flash attention on), with `-fa off`, which suits one kind of "
            "load better and another worse, and with `--no-repack` (without AMX kernels); each time with "
            f"{SLOTS} slots of {SLOT_CONTEXT} tokens for several streams, and one slot of {DEEP_CONTEXT} for one. "
            "The one process of the service does all. "
            "The ratio of a time or of memory is turned round, so that above 1 is always better."
        ),
        comparisons=[
            msgspec.structs.replace(comparison, wanted=WANTED[profile].get(comparison.figure.name))
            for comparison in comparisons
            if comparison.service == profile
        ],
        checks=[
            "Every stream made exactly the number of tokens asked for, on every side.",
            f"The service's self-benchmark chose: {tuning}.",
        ],
        memory={},
        versions=versions,
        table=_quality_table(model, profile),
        bounds={name: why for (named, name), why in BOUNDS.items() if named == profile},
    )


def own_section(
    model: Model, profile: ProfileName, own: Sequence[Comparison], held: Mapping[ProfileName, list[Holding]]
) -> Section:
    """Return the table of the service beside itself, measured in ``profile``, and of what it holds."""
    last = [(name, states[0], states[-1]) for name, states in held.items()]
    return Section(
        title=f"Generation, {model.name}, beside itself",
        method=(
            f"The service in the profile {profile} beside the same without the constraint, and beside its own engine "
            "in a process without HTTP; the client's work counts as HTTP's. Then what the service holds, started "
            f"afresh, while 1, 8 and 16 prompts of {PROMPT} tokens are being continued: resident memory against the "
            "program without a model, the files of the weights, and the keys and values of the tokens so far."
        ),
        comparisons=[
            msgspec.structs.replace(comparison, wanted=generation_costs.WANTED[comparison.figure.name])
            for comparison in own
        ],
        checks=[
            f"Profile {name}: from loaded to {end.state} the service grew by {end.resident - start.resident:.0f} MB, "
            f"of which {end.kv:.0f} MB are keys and values in use."
            for name, start, end in last
        ],
        memory={},
        versions=[],
        table=_holdings_table(held),
        bounds={name: why for (named, name), why in BOUNDS.items() if named == profile},
        beside_itself=True,
    )


def _holdings_table(held: Mapping[ProfileName, list[Holding]]) -> str:
    rows = [
        f"| {profile} | {holding.state} | {holding.resident:.0f} | {holding.program:.0f} | {holding.weights:.0f} | "
        f"{holding.kv:.0f} | **{holding.share:.2f}** | {'yes' if holding.share <= MOST_SURPLUS else '**no**'} |\n"
        for profile, states in held.items()
        for holding in states
    ]
    return (
        "| profile | state | resident MB | program | weights | keys and values | resident over the sum | "
        f"at most {MOST_SURPLUS:.2f} |\n|---|---|---:|---:|---:|---:|---:|---|\n" + "".join(rows)
    )


def _quality_table(model: Model, profile: ProfileName) -> str:
    """Return what the graphs that a profile may run by keep of the source's quality, as the build measured it."""
    chosen = model.decoder.profile(profile)
    graphs = set() if chosen is None else {chosen.graph, chosen.alternative}
    rows = []
    for figure in model.manifest.quality:
        measured = model.decoder.profile(figure.profile or "exact")
        if measured is not None and measured.graph in graphs:
            rows.append(
                f"| {measured.graph} | {figure.metric.replace('_', ' ')} | {figure.value:.5g} | "
                f"{_number(figure.reference)} | {_number(figure.limit)} |\n"
            )
    head = "| graph | against the dequantised weights | the graph | the weights | limit |\n|---|---|---:|---:|---:|\n"
    return head + "".join(rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


def _listed(peers: Sequence[str]) -> str:
    """Return the ways to run llama.cpp in words."""
    kernels = " (AMX kernels on)" if has_amx() else ""
    return " and ".join(
        " ".join(("llama-server", *WAYS[peer])) + ("" if WAYS[peer] else kernels) for peer in peers
    )
