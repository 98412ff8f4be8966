"""The gateway beside LiteLLM's proxy, both before the same trivial engine, and what it takes by itself."""

from __future__ import annotations

import asyncio
import functools
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.benchmarks.figures import OURS, Comparison, Figure, alternate, in_turns
from tests.benchmarks.gateway_overhead import CLIENTS, ENGINE_SECONDS, overheads
from tests.benchmarks.http_client import Connection
from tests.benchmarks.section import Plan, Section
from tests.service import Service, clean_environment, free_port, running_service

LITELLM, DIRECT = "LiteLLM proxy", "without a gateway"
LITELLM_ALIVE = "/health/liveliness"
LITELLM_ENVIRONMENT = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
KEY = "sk-bench-0123456789abcdef"
ENGINE = Path(__file__).parent / "peers" / "trivial_engine.py"
BODY = {"model": "trivial", "messages": [{"role": "user", "content": "Is this fast?"}], "max_tokens": 16}
SMALL, LARGE = 10, 10_000
REQUESTS = {1: 200, 32: 1600, 256: 2560}
START_SECONDS = 120

FIGURES = [
    Figure(name=f"chat request, {clients} clients, {part}", unit="ms", higher_is_better=False, digits=2)
    for clients in CLIENTS
    for part in ("p50", "p99")
]


def run(plan: Plan) -> list[Section]:
    """Measure both. Raises RuntimeError when a side fails."""
    return [_over_http(plan), _by_itself(plan)]


def _over_http(plan: Plan) -> Section:
    engine = f"http://127.0.0.1:{free_port()}"
    with (
        _process([sys.executable, "-I", str(ENGINE), engine.rpartition(":")[2]], engine + "/v1/models"),
        running_service(
            plan.work / "gateway", key=KEY, APPLIANCE_PROVIDER_NETWORKS="127.0.0.1/32"
        ) as service,
        _litellm(plan, engine) as (litellm, version),
    ):
        _route(service, engine)
        sides = {OURS: service.base_url, LITELLM: litellm, DIRECT: engine}

        def measure(number: int) -> Mapping[str, Mapping[str, float]]:
            return in_turns({name: functools.partial(_latencies, url) for name, url in sides.items()}, number)

        comparisons = alternate(FIGURES, measure, plan.rounds, plan.say, warm_up=plan.warm_up)
    return Section(
        title="Gateway, over HTTP",
        method=(
            "Clients that ask again as soon as they have an answer, of an engine that answers at once (a process "
            "of its own): through the service (a router with one provider of type vllm, a key, limits, price and "
            "usage records in its store), through LiteLLM's proxy (one worker, its master key, no database: "
            "neither users nor budgets nor records), and without a gateway. All processes and the clients share "
            "the cores, so the times of many clients are those of a queue."
        ),
        comparisons=[each for each in comparisons if each.peer == LITELLM],
        checks=[_added(comparisons, clients) for clients in CLIENTS],
        memory={},
        versions=[version],
        bounds={},
    )


def _added(comparisons: list[Comparison], clients: int) -> str:
    by_peer = {(comparison.peer, comparison.figure.name): comparison for comparison in comparisons}
    direct = by_peer[DIRECT, f"chat request, {clients} clients, p50"]
    other = by_peer[LITELLM, f"chat request, {clients} clients, p50"]
    pairs = list(zip(direct.ours, direct.theirs, other.theirs, strict=True))
    ours = sorted(mine - bare for mine, bare, _ in pairs)[len(pairs) // 2]
    theirs = sorted(proxy - bare for _, bare, proxy in pairs)[len(pairs) // 2]
    return (
        f"Added at {clients} clients (p50): {ours:.2f} ms by the service, {theirs:.2f} ms by LiteLLM's proxy."
    )


def _by_itself(plan: Plan) -> Section:
    rows = []
    for users in (SMALL, LARGE):
        plan.say(f"  {users} users ...")
        found = overheads(plan.work / f"store-{users}", users)
        rows += [
            f"| {users:,} users, {10 * users:,} keys | {clients} | {each.median:.3f} | {each.worst:.3f} "
            f"| {each.requests} |"
            for clients, each in found.items()
        ]
    table = (
        "| store | clients | p50 ms | p99 ms | requests |\n|---|---:|---:|---:|---:|\n"
        + "\n".join(rows)
        + "\n"
    )
    return Section(
        title="Gateway, by itself",
        method=(
            "In one process, without HTTP: the key's look-up, visibility, limits, a reservation of budget, the choice "
            f"of a provider, and the account of it all, around an engine that takes {1000 * ENGINE_SECONDS:.0f} ms "
            "of nothing. Usage records are written meanwhile."
        ),
        comparisons=[],
        checks=[],
        memory={},
        versions=[],
        table=table,
        beside_itself=True,
    )


def _latencies(url: str) -> dict[str, float]:
    """Return the median and the 99th percentile in ms by number of clients."""
    found = {}
    for clients in CLIENTS:
        seconds = sorted(asyncio.run(_asked(url, clients, REQUESTS[clients])))
        found[f"chat request, {clients} clients, p50"] = 1000 * seconds[len(seconds) // 2]
        found[f"chat request, {clients} clients, p99"] = 1000 * seconds[int(0.99 * len(seconds))]
    return found


async def _asked(url: str, clients: int, requests: int) -> list[float]:
    seconds: list[float] = []

    async def client() -> None:
        async with Connection(url, KEY) as connection:
            for _ in range(requests // clients):
                answer = await connection.post("/v1/chat/completions", BODY)
                answer.check()
                seconds.append(answer.seconds)

    await asyncio.gather(*(client() for _ in range(clients)))
    return seconds


def _route(service: Service, engine: str) -> None:
    """Make the router and its provider, with a price so that budgets are looked at."""
    with service.http as http:
        router = http.post(
            "/v1/admin/routers",
            json={
                "name": "trivial",
                "type": "text-generation",
                "cost_prompt_tokens": 1,
                "cost_completion_tokens": 1,
            },
        )
        provider = http.post(
            "/v1/admin/providers",
            json={"router": router.json().get("id"), "type": "vllm", "url": engine, "model_name": "trivial"},
        )
        if provider.status_code != 201:
            raise RuntimeError(f"no provider: {router.text} {provider.text}")


@contextmanager
def _litellm(plan: Plan, engine: str) -> Iterator[tuple[str, str]]:
    """Start LiteLLM's proxy before the engine; yield its URL and version."""
    command, url = litellm_command(plan, engine)
    with _process(command, url + LITELLM_ALIVE, **LITELLM_ENVIRONMENT):
        yield url, litellm_version(plan.python)


def litellm_command(plan: Plan, engine: str) -> tuple[list[str], str]:
    """Return the command that starts LiteLLM's proxy before the engine, and the URL that it will have."""
    config = plan.work / "litellm.json"
    model = {"model": "openai/trivial", "api_base": f"{engine}/v1", "api_key": "none"}
    config.write_text(
        json.dumps(
            {
                "model_list": [{"model_name": "trivial", "litellm_params": model}],
                "general_settings": {"master_key": KEY},
                "litellm_settings": {"telemetry": False},
            }
        )
    )
    url = f"http://127.0.0.1:{free_port()}"
    script = plan.python.parent / "litellm"
    port = url.rpartition(":")[2]
    return [str(script), "--config", str(config), "--host", "127.0.0.1", "--port", port], url


def litellm_version(python: Path) -> str:
    """Return the name and version of the LiteLLM in the environment of ``python``."""
    shown = subprocess.run(
        [python, "-c", "import importlib.metadata as m; print('litellm', m.version('litellm'))"],
        check=True,
        capture_output=True,
        text=True,
    )
    return shown.stdout.strip()


@contextmanager
def _process(command: list[str], ready: str, **environment: str) -> Iterator[None]:
    """Run a server until the end; wait for its first answer."""
    process = subprocess.Popen(
        command, env=clean_environment(**environment), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise RuntimeError(f"{Path(command[0]).name} ended with {process.returncode}")
            try:
                if httpx.get(ready, trust_env=False, timeout=2).status_code == httpx.codes.OK:
                    yield
                    return
            except httpx.TransportError:
                time.sleep(0.2)
        raise RuntimeError(f"{Path(command[0]).name} does not answer")
    finally:
        process.kill()
        process.wait()
