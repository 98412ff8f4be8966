"""Clients of one router, one of whose servers is killed while they ask; and what they got."""

from __future__ import annotations

import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx


def under_load(
    base_url: str, key: str, model: str, victim: int, *, requests: int, clients: int, **fields: Any
) -> tuple[list[int], list[str]]:
    """Ask ``requests`` streams; kill the process ``victim`` when a fifth is through; return all statuses and texts."""
    through = threading.Semaphore(0)
    body = {"model": model, "messages": [{"role": "user", "content": "Count."}], "stream": True, **fields}

    def ask(_number: int) -> tuple[int, str]:
        headers = {"Authorization": f"Bearer {key}"}
        with httpx.Client(base_url=base_url, headers=headers, trust_env=False) as http:
            answer = http.post("/v1/chat/completions", json=body, timeout=300)
        through.release()
        return answer.status_code, answer.text

    with ThreadPoolExecutor(clients) as pool:
        asked = [pool.submit(ask, number) for number in range(requests)]
        for _ in range(requests // 5):
            assert through.acquire(timeout=300)
        os.kill(victim, signal.SIGKILL)
        results = [each.result() for each in asked]
    return [status for status, _ in results], [text for _, text in results]


def events_of(text: str) -> list[dict[str, Any]]:
    """Return the events of a stream, which must have ended itself."""
    lines = [line.removeprefix("data: ") for line in text.split("\n") if line]
    assert lines.pop() == "[DONE]", text
    return [json.loads(line) for line in lines]


def is_error_free(text: str) -> bool:
    """Tell whether no event of a stream is an error."""
    return not any("error" in event for event in events_of(text))


def is_cut_clearly(text: str) -> bool:
    """Tell whether the last event, and no other, is an error that a client can read."""
    *before, last = events_of(text)
    readable = bool(before) and "please try again" in str(last.get("error", {}).get("message"))
    return readable and not any("error" in event for event in before)
