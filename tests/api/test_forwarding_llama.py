"""llama.cpp's own server as a provider: another engine, whose answers and counts are passed on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_packs.cache import default_cache
from tests.api.upstreams import LOOPBACK, add_provider, ask, make_router
from tests.benchmarks.chat_model import _gguf
from tests.benchmarks.llama_cpp import LlamaServer, Tools, running_llama_server
from tests.service import CHAT, Service, running_service


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


@pytest.fixture(scope="module")
def model(llama: LlamaServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, str]]:
    """Start a box in front of it, and name the router."""
    data_dir: Path = tmp_path_factory.mktemp("llama-front") / "data"
    with running_service(data_dir, APPLIANCE_PROVIDER_NETWORKS=LOOPBACK) as box:
        router, name = make_router(box)
        # It lists its model by the file's name.
        with box.http as http:
            listed = http.get(f"{llama.base_url}/v1/models").json()["data"][0]["id"]
        add_provider(box, router, llama.base_url, model_name=listed, timeout=120)
        yield box, name


def test_its_answers_and_counts_are_passed_on(model: tuple[Service, str]) -> None:
    box, name = model
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
