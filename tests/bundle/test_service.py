"""The frozen service over the default packs: every kind of endpoint, no file of this clone's environment."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bundle.frozen import PROGRAM, TREE, needs_tree
from tests.samples.speech import jfk_wav
from tests.service import CHAT, EMBEDDING, RERANK, SPEECH, Service, link_default_packs, running_service

pytestmark = needs_tree


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    data_dir = tmp_path_factory.mktemp("frozen") / "data"
    link_default_packs(data_dir)
    with running_service(data_dir, program=[str(PROGRAM)]) as service:
        yield service


def test_chat(service: Service) -> None:
    answer = service.openai.chat.completions.create(
        model=CHAT, messages=[{"role": "user", "content": "Name a colour."}], max_tokens=8
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0


def test_an_answer_under_a_schema(service: Service) -> None:
    schema: dict[str, object] = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
    }
    answer = service.openai.chat.completions.create(
        model=CHAT,
        messages=[{"role": "user", "content": "Is water wet?"}],
        max_tokens=40,
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
    )
    assert (answer.choices[0].message.content or "").lstrip().startswith("{")


def test_embeddings(service: Service) -> None:
    answer = service.openai.embeddings.create(model=EMBEDDING, input=["ferry", "harbour"])
    assert [len(item.embedding) for item in answer.data] == [384, 384]


def test_rerank(service: Service) -> None:
    body = {
        "model": RERANK,
        "query": "Where do ships land?",
        "documents": ["In a harbour.", "Bread is baked."],
    }
    with service.http as http:
        answer = http.post("/v1/rerank", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["results"][0]["index"] == 0


def test_transcription_in_the_confined_worker(service: Service) -> None:
    with jfk_wav().open("rb") as file:
        text = service.openai.audio.transcriptions.create(model=SPEECH, file=file).text
    assert "your country" in text


def test_documentation_page_and_metrics(service: Service) -> None:
    with service.http as http:
        page = http.get("/docs").text
        for path in ("/openapi.json", "/metrics", "/docs/start.js"):
            assert http.get(path).status_code == 200
        assets = [part.split('"')[0] for part in page.split('"/docs/assets/')[1:]]
        assert assets
        for asset in assets:
            assert http.get(f"/docs/assets/{asset}").status_code == 200


def test_service_and_worker_load_the_trees_libraries_and_the_systems_alone(service: Service) -> None:
    children = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text().split()
    assert children, "the speech worker is not there"
    for pid in (str(service.process.pid), *children):
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        files = {line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6}
        loaded = {name for name in files if ".so" in name}
        assert any(name.startswith(f"{TREE}/") for name in loaded)
        for prefix in {sys.prefix, sys.base_prefix}:
            assert not [name for name in loaded if name.startswith(f"{prefix}/")]
