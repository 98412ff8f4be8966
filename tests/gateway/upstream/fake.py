"""A scripted upstream server: a real HTTP server in a thread that answers, fails or falls silent as told."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "upstream-model"
# Of this one it tells no context length.
UNSIZED = "unsized-model"
KEY = "upstream-key"

Script = Callable[["Exchange"], None]


@dataclass
class Exchange:
    """One request, and the ways to answer it."""

    handler: BaseHTTPRequestHandler
    body: bytes

    @property
    def json(self) -> Any:
        """The request's JSON body."""
        return json.loads(self.body)

    def answer(self, body: Any, status: int = 200, kind: str = "application/json", **headers: str) -> None:
        """Answer with a whole body; ``headers`` with underscores for hyphens."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.handler.send_response(status)
        self.handler.send_header("Content-Type", kind)
        self.handler.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.handler.send_header(name.replace("_", "-"), value)
        self.handler.end_headers()
        self.handler.wfile.write(data)

    def begin_stream(self, kind: str = "text/event-stream") -> None:
        """Begin a chunked answer."""
        self.handler.send_response(200)
        self.handler.send_header("Content-Type", kind)
        self.handler.send_header("Transfer-Encoding", "chunked")
        self.handler.end_headers()

    def piece(self, data: bytes) -> None:
        """Send a piece of a stream."""
        self.handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.handler.wfile.flush()

    def event(self, payload: Any) -> None:
        """Send an event."""
        text = payload if isinstance(payload, str) else json.dumps(payload)
        self.piece(b"data: " + text.encode() + b"\n\n")

    def end_stream(self) -> None:
        """End it as a good server does."""
        self.handler.wfile.write(b"0\r\n\r\n")

    def hang_up(self) -> None:
        """Close the connection at once."""
        self.handler.close_connection = True
        self.handler.connection.shutdown(socket.SHUT_RDWR)

    def client_left(self, seconds: float) -> bool:
        """Tell whether the other side closes the connection within ``seconds``."""
        connection = self.handler.connection
        connection.settimeout(seconds)
        try:
            return not connection.recv(1)
        except TimeoutError:
            return False
        except OSError:
            return True


@dataclass
class Received:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Its JSON body."""
        return json.loads(self.body)


@dataclass
class FakeUpstream:
    """A server that does what ``script`` says, but lists its model itself."""

    base_url: str
    script: Script
    received: list[Received] = field(default_factory=list)
    # Notes that scripts leave for the test.
    seen: dict[str, Any] = field(default_factory=dict)

    @property
    def posted(self) -> list[Received]:
        """The requests that were posted."""
        return [each for each in self.received if each.method == "POST"]


@contextmanager
def fake_upstream(script: Script) -> Iterator[FakeUpstream]:
    """Serve on a free port of the loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            upstream.received.append(Received("GET", self.path, dict(self.headers), b""))
            exchange = Exchange(self, b"")
            if self.path == "/info":
                exchange.answer({"model_id": MODEL, "max_input_length": 512})
            else:
                card = {"id": MODEL, "max_model_len": 4096, "aliases": ["alias"]}
                exchange.answer({"data": [card, {"id": UNSIZED}]})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            upstream.received.append(Received("POST", self.path, dict(self.headers), body))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                upstream.script(Exchange(self, body))

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    connections: list[socket.socket] = []

    class Server(ThreadingHTTPServer):
        def get_request(self) -> tuple[socket.socket, Any]:
            connection, address = super().get_request()
            connections.append(connection)
            return connection, address

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    upstream = FakeUpstream(f"http://127.0.0.1:{server.server_address[1]}", script)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield upstream
    finally:
        server.shutdown()
        for connection in connections:  # else those that are kept open would be served on
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        server.server_close()
        thread.join()


def chunk(text: str | None = None, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    """Return a chunk of a streamed chat."""
    delta = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
    return {
        "id": "up-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": MODEL,
        "choices": [choice],
        **fields,
    }


def usage(prompt: Any = 11, completion: Any = 3) -> dict[str, Any]:
    """Return a usage as OpenAI has it."""
    total = prompt + completion if isinstance(prompt, int) and isinstance(completion, int) else None
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}


def chat_answer(text: str = "one two three", **fields: Any) -> dict[str, Any]:
    """Return a whole chat answer."""
    return {
        "id": "up-1",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": usage(),
        **fields,
    }


def streaming(texts: Sequence[str] = ("one", " two", " three"), pause: float = 0.0) -> Script:
    """Return a script that answers chats, streamed or not, as a good server does."""

    def script(exchange: Exchange) -> None:
        if not exchange.json.get("stream"):
            exchange.answer(chat_answer("".join(texts)))
            return
        exchange.begin_stream()
        exchange.event(chunk(""))
        for text in texts:
            time.sleep(pause)
            exchange.event(chunk(text))
        exchange.event(chunk(finish="stop"))
        if (exchange.json.get("stream_options") or {}).get("include_usage"):
            exchange.event(chunk(choices=[], usage=usage()))
        exchange.event("[DONE]")
        exchange.end_stream()

    return script
