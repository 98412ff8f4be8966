"""Work ends with its client: every sequence of a request stops when nobody listens any more."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.asking import PROMPT, unanswered
from tests.api.test_concurrency import gauge, wait_for
from tests.service import CHAT, Service


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize(
    "fields",
    [
        {"n": 4, "temperature": 1},
        {"best_of": 3, "temperature": 1},
        {"use_beam_search": True, "n": 3, "temperature": 0, "prompt": [PROMPT, "Once"]},
    ],
    ids=["n", "best_of", "beams"],
)
def test_a_client_that_leaves_stops_all_its_sequences(
    service: Service, fields: dict[str, Any], stream: bool
) -> None:
    body = {
        "model": CHAT,
        "prompt": PROMPT,
        "max_tokens": 4000,
        "ignore_eos": True,
        "stream": stream,
        **fields,
    }
    with unanswered(service, body, "/v1/completions"):
        wait_for(lambda: gauge(service, "appliance_engine_running_rows") >= 3)
    wait_for(lambda: gauge(service, "appliance_engine_running_rows") == 0)
