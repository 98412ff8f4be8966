"""llama.cpp's own server as a provider: another engine, whose answers and counts are passed on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

from model_packs.cache import default_cache
from tests.api.upstreams import add_provider, ask, make_router
from tests.benchmarks.chat_model import _gguf
from tests.benchmarks.llama_cpp import LlamaServer, Tools, running_llama_server
from tests.gateway.chaos.load import is_cut_clearly, is_error_free, under_load
from tests.service import CHAT, Service

REQUESTS = 30


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaServer]:
    """Start llama-server as the benchmarks built it."""
    built = sorted((default_cache() / "bench").glob("llama.cpp-*/llama-server"))
    if not built:
        pytest.skip("llama-server is not built: python -m tests.benchmarks builds it (20 minutes)")
    folder = tmp_path_factory.mktemp("llama")
    model = _gguf(CHAT, folder / "gguf")
    tools = Tools(built[-1].parent, "")
    with running_llama_server(tools, model, folder / "log", threads=1, slots=2, context=1024) as server:
        yield server


def _listed(llama: LlamaServer) -> str:
    """Return its name of the model: the file's."""
    listed: str = httpx.get(f"{llama.base_url}/v1/models", trust_env=False).json()["data"][0]["id"]
    return listed


def test_its_answers_and_counts_are_passed_on(box: Service, llama: LlamaServer) -> None:
    router, name = make_router(box)
    add_provider(box, router, llama.base_url, model_name=_listed(llama), timeout=120)
    whole = ask(box, name, max_tokens=8, temperature=0)
    assert whole.status_code == 200, whole.text
    usage = whole.json()["usage"]
    assert usage["completion_tokens"] == 8
    assert usage["prompt_tokens"] > 0
    assert whole.json()["model"] == name
    streamed = ask(
        box, name, max_tokens=8, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    events = [json.loads(line[6:]) for line in streamed.text.split("\n") if line.startswith("data: {")]
    assert events[-1]["usage"]["completion_tokens"] == 8
    text = "".join(event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"])
    assert text == whole.json()["choices"][0]["message"]["content"]


def test_two_boxes_and_it_stand_behind_one_router_and_one_is_killed_under_load(
    box: Service, service: Service, second: Service, llama: LlamaServer
) -> None:
    router, name = make_router(box)
    for back in (service, second):
        add_provider(box, router, back.base_url, type="appliance", model_name=CHAT, key=back.key)
    add_provider(box, router, llama.base_url, model_name=_listed(llama), timeout=120)
    while len(_answering(box, name)) < 3:  # they are drawn: soon each had one
        assert ask(box, name, max_tokens=1).status_code == 200
    statuses, texts = under_load(
        box.base_url, box.key, name, second.process.pid, requests=REQUESTS, clients=4, max_tokens=8
    )
    assert Counter(statuses) == {200: REQUESTS}
    assert all(is_error_free(text) or is_cut_clearly(text) for text in texts)
    assert sum(map(is_error_free, texts)) > REQUESTS // 2


def _answering(box: Service, router: str) -> list[str]:
    """Return the series of the router's providers that have answered a call."""
    with box.http as http:
        series = http.get("/metrics").text.split("\n")
    calls = [line for line in series if line.startswith("appliance_calls_total{")]
    return [line for line in calls if 'status="200"' in line and f'router="{router}"' in line]
