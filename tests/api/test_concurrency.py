"""Many clients at once: no error, no mixed-up text; a client that leaves stops its work."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.api.asking import unanswered
from tests.samples.speech import jfk_wav
from tests.service import CHAT, EMBEDDING, RERANK, SPEECH, Service

PROMPTS = ["The capital of France is", "Water boils at", "My favourite colour is", "In the year 1969,"]


def complete(http: httpx.Client, prompt: str) -> str:
    body = {"model": CHAT, "prompt": prompt, "max_tokens": 24, "temperature": 0}
    text: str = http.post("/v1/completions", json=body).raise_for_status().json()["choices"][0]["text"]
    return text


def streamed(http: httpx.Client, prompt: str) -> str:
    body = {"model": CHAT, "prompt": prompt, "max_tokens": 24, "temperature": 0, "stream": True}
    import json

    lines = http.post("/v1/completions", json=body).raise_for_status().text.split("\n")
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return "".join(event["choices"][0]["text"] for event in events)


def embedding(http: httpx.Client, text: str) -> list[float]:
    body = {"model": EMBEDDING, "input": text}
    vector: list[float] = (
        http.post("/v1/embeddings", json=body).raise_for_status().json()["data"][0]["embedding"]
    )
    return vector


def ranking(http: httpx.Client, text: str) -> list[int]:
    body = {"model": RERANK, "query": text, "documents": PROMPTS}
    results = http.post("/v1/rerank", json=body).raise_for_status().json()["results"]
    return [result["index"] for result in results]


def transcript(http: httpx.Client, audio: bytes) -> str:
    form = {"model": SPEECH, "language": "en"}
    files = {"file": ("a.wav", audio)}
    text: str = (
        http.post("/v1/audio/transcriptions", data=form, files=files).raise_for_status().json()["text"]
    )
    return text


def test_sixteen_clients_on_mixed_endpoints_get_what_they_get_alone(service: Service) -> None:
    audio = jfk_wav().read_bytes()
    calls: list[tuple[Any, Any]] = [
        *((complete, prompt) for prompt in PROMPTS),
        *((streamed, prompt) for prompt in PROMPTS),
        *((embedding, prompt) for prompt in PROMPTS),
        *((ranking, prompt) for prompt in PROMPTS[:3]),
        (transcript, audio),
    ]
    assert len(calls) == 16
    with service.http as http:
        alone = [call(http, argument) for call, argument in calls]
        with ThreadPoolExecutor(len(calls)) as pool:
            for _ in range(2):
                together = list(pool.map(lambda item: item[0](http, item[1]), calls))
                for (call, _), expected, found in zip(calls, alone, together, strict=True):
                    if call is embedding:
                        assert sum(a * b for a, b in zip(expected, found, strict=True)) > 1 - 1e-3
                    else:
                        assert found == expected


def gauge(service: Service, name: str) -> float:
    with service.http as http:
        for line in http.get("/metrics").text.split("\n"):
            if line.startswith(f'{name}{{model="{CHAT}"}}'):
                return float(line.split()[-1])
    raise AssertionError(f"no metric {name}")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_disconnects_stops_the_work(service: Service, stream: bool) -> None:
    body = {
        "model": CHAT,
        "prompt": "Count: 1 2 3 4",
        "max_tokens": 4000,
        "ignore_eos": True,
        "stream": stream,
    }
    with unanswered(service, body, "/v1/completions") as connection:
        if stream:
            connection.recv(100)
        wait_for(lambda: gauge(service, "appliance_engine_running_rows") == 1)
    # 4,000 tokens take far longer than this wait.
    wait_for(lambda: gauge(service, "appliance_engine_running_rows") == 0)


def wait_for(condition: Any, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
