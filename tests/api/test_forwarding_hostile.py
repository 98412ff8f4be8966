"""Whatever a client writes, and whatever a server answers: never a failure of the box itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.api.upstreams import routed
from tests.gateway.upstream.fake import FakeUpstream, chat_answer, chunk, fake_upstream
from tests.service import Service

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(
        [0, -1, 1, 2**63, -(2**63) - 1, 2**70, 1e308, -0.0, 1.5, "5", "true", "", "\x00", "\U0010ffff", "é"]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["role", "content", "text", "type", "error", "index", "delta"]), inner, max_size=3
        ),
    ),
    max_leaves=6,
)
REQUEST_FIELDS = st.dictionaries(
    st.sampled_from(
        [
            *(
                "messages",
                "prompt",
                "input",
                "n",
                "max_tokens",
                "max_completion_tokens",
                "stream",
                "stream_options",
            ),
            *(
                "tools",
                "tool_choice",
                "stop",
                "search",
                "encoding_format",
                "dimensions",
                "query",
                "documents",
            ),
            *("pages", "document", "top_n", "unknown"),
        ]
    ),
    VALUES,
    max_size=4,
)
ANSWER_FIELDS = st.dictionaries(
    st.sampled_from(["id", "choices", "usage", "model", "data", "results", "pages", "error", "object"]),
    VALUES,
    max_size=4,
)
ROUTES: dict[str, tuple[str, dict[str, Any]]] = {
    "/chat/completions": ("text-generation", {"messages": [{"role": "user", "content": "x"}]}),
    "/completions": ("text-generation", {"prompt": "x"}),
    "/embeddings": ("text-embeddings-inference", {"input": "x"}),
    "/rerank": ("text-classification", {"query": "q", "documents": ["a"]}),
    "/ocr": ("image-to-text", {"document": {"type": "document_url", "document_url": "x"}}),
}
KINDS = {"text-classification": "tei", "image-to-text": "mistral"}
EXAMPLES = settings(max_examples=60, deadline=None)


@pytest.fixture(scope="module")
def upstream() -> Iterator[FakeUpstream]:
    """Start a server that has vectors for the probe."""
    with fake_upstream(
        lambda exchange: exchange.answer({"data": [{"index": 0, "embedding": [0.5]}]})
    ) as server:
        yield server


@pytest.fixture(scope="module")
def models(box: Service, upstream: FakeUpstream) -> dict[str, str]:
    """Name a router for each kind of model."""
    kinds = {kind for kind, _ in ROUTES.values()}
    return {kind: routed(box, upstream, kind=kind, type=KINDS.get(kind, "vllm")) for kind in sorted(kinds)}


@pytest.mark.parametrize("mount", ["/v1", "/opengatellm/v1"])
@pytest.mark.parametrize("route", ROUTES)
def test_any_body_is_forwarded_or_refused(
    box: Service, upstream: FakeUpstream, models: dict[str, str], mount: str, route: str
) -> None:
    kind, fields = ROUTES[route]
    upstream.script = lambda exchange: exchange.answer(
        {**chat_answer(), "data": [], "pages": [], "results": []}
    )
    with box.http as http:

        @EXAMPLES
        @given(REQUEST_FIELDS)
        def check(changed: dict[str, Any]) -> None:
            body = {"model": models[kind], **fields, **changed}
            answer = http.post(
                mount + route, content=json.dumps(body), headers={"Content-Type": "application/json"}
            )
            assert answer.status_code in (200, 400, 403, 404, 413, 422, 503), answer.text

        check()
    assert "Traceback" not in box.log.read_text()


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("route", ROUTES)
def test_any_answer_is_passed_on_or_a_failure_of_the_provider(
    box: Service, upstream: FakeUpstream, models: dict[str, str], route: str, streamed: bool
) -> None:
    kind, fields = ROUTES[route]
    said: list[Any] = []

    def script(exchange: Any) -> None:
        if not streamed:
            exchange.answer(said[0])
            return
        exchange.begin_stream()
        exchange.event(chunk("a"))
        exchange.event(said[0])
        exchange.event("[DONE]")
        exchange.end_stream()

    upstream.script = script
    with box.http as http:

        @EXAMPLES
        @given(st.one_of(ANSWER_FIELDS, VALUES))
        def check(answer: Any) -> None:
            said[:] = [answer]
            body = {"model": models[kind], **fields, "stream": streamed}
            found = http.post("/v1" + route, json=body)
            assert found.status_code in (200, 400, 503), found.text
            if streamed and found.status_code == 200:
                for line in found.text.split("\n"):
                    assert not line or line == "data: [DONE]" or json.loads(line.removeprefix("data: "))
                    assert "The server had an error" not in line

        check()
    assert "Traceback" not in box.log.read_text()
