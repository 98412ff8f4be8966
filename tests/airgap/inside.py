"""Runs inside a network namespace of its own: serve, call every endpoint, count attempts to leave.

``python -m tests.airgap.inside DATA_DIR``. The namespace has nothing but loopback, so every attempt to
reach anything else ends at the routing table, and the kernel counts it (``OutNoRoutes``).
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import sys
from pathlib import Path

from tests.samples.speech import jfk_wav
from tests.service import CHAT, EMBEDDING, RERANK, SPEECH, Service, running_service

SIOCSIFFLAGS = 0x8914
IFF_UP = 0x1
OUTSIDE = ("192.0.2.1", 80)  # TEST-NET-1: nobody's address


def raise_loopback() -> None:
    """Bring ``lo`` up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def attempts() -> int:
    """Return how often anything here tried to leave."""
    names, values = [
        line.split() for line in Path("/proc/net/snmp").read_text().split("\n") if line.startswith("Ip:")
    ]
    count = int(values[names.index("OutNoRoutes")])
    snmp6 = Path("/proc/net/snmp6")
    if snmp6.exists():
        count += sum(
            int(v)
            for k, v in (line.split() for line in snmp6.read_text().splitlines())
            if k == "Ip6OutNoRoutes"
        )
    return count


def call_everything(service: Service) -> None:
    """Use every kind of endpoint once; raises when one fails."""
    client = service.openai
    messages = [{"role": "user", "content": "Hello"}]
    assert client.chat.completions.create(model=CHAT, messages=messages, max_tokens=4).choices  # type: ignore[arg-type]
    assert client.completions.create(model=CHAT, prompt="Hello", max_tokens=4).choices
    assert client.embeddings.create(model=EMBEDDING, input="Hello").data
    with jfk_wav().open("rb") as file:
        assert "country" in client.audio.transcriptions.create(model=SPEECH, file=file).text
    with service.http as http:
        body = {"query": "a", "documents": ["b", "c"], "model": RERANK}
        http.post("/v1/rerank", json=body).raise_for_status()
        for path in ("/v1/models", "/metrics", "/docs", "/docs/start.js", "/openapi.json"):
            http.get(path).raise_for_status()


def main() -> None:
    """Run the proof; the last line says how many attempts were counted."""
    raise_loopback()
    before = attempts()
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.connect(OUTSIDE)
    if attempts() == before:
        raise SystemExit("the kernel does not count attempts here: the proof would prove nothing")
    counted = attempts()
    with running_service(Path(sys.argv[1])) as service:
        call_everything(service)
    print(f"attempts: {attempts() - counted}")


if __name__ == "__main__":
    main()
