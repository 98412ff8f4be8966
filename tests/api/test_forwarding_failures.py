"""Providers that fail: the next one is tried before the first byte, and after it the client is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.api.asking import events_of
from tests.api.monitoring.reading import Series
from tests.api.upstreams import LOOPBACK, ask, routed
from tests.gateway.upstream.fake import (
    KEY,
    Exchange,
    FakeUpstream,
    Script,
    chat_answer,
    chunk,
    fake_upstream,
    streaming,
)
from tests.service import Service, running_service

UNAVAILABLE = "Model is temporarily unavailable, please try again later."


@pytest.fixture
def alone(box: Service) -> Iterator[tuple[FakeUpstream, str]]:
    """Give a router with one scripted server, and that server."""
    with fake_upstream(streaming()) as server:
        yield server, routed(box, server, timeout=2)


def answers(body: Any, status: int = 200, kind: str = "application/json", **headers: str) -> Script:
    return lambda exchange: exchange.answer(body, status, kind, **headers)


def begun(*pieces: bytes, then: Callable[[Exchange], None] = Exchange.end_stream) -> Script:
    """Return a script that sends these pieces of a stream, and then does something else."""

    def script(exchange: Exchange) -> None:
        exchange.begin_stream()
        for piece in pieces:
            exchange.piece(piece)
        then(exchange)

    return script


def silent(exchange: Exchange) -> None:
    exchange.client_left(10)


def torn(exchange: Exchange) -> None:
    """Announce more than is sent."""
    exchange.handler.send_response(200)
    exchange.handler.send_header("Content-Length", "1000")
    exchange.handler.end_headers()
    exchange.handler.wfile.write(b'{"id": ')
    exchange.hang_up()


def no_http(exchange: Exchange) -> None:
    exchange.handler.wfile.write(b"\x00\xff\x00 this is no HTTP\r\n\r\n")
    exchange.hang_up()


def endless(exchange: Exchange) -> None:
    """Send more than an answer may hold."""
    exchange.begin_stream("application/json")
    for _ in range(80):
        exchange.piece(b" " * (1 << 20))


def many_headers(exchange: Exchange) -> None:
    exchange.handler.send_response(200)
    for number in range(5000):
        exchange.handler.send_header(f"X-Header-{number}", "x" * 100)
    exchange.handler.end_headers()


DEFECTS: dict[str, Script] = {
    "500": answers({"error": "boom"}, 500),
    "502 in HTML": answers(b"<html>Bad Gateway</html>", 502, "text/html"),
    "503": answers({"detail": "loading"}, 503),
    "503 with Retry-After": answers({"detail": "loading"}, 503, Retry_After="7"),
    "429": answers({"error": {"message": "slow down"}}, 429),
    "401": answers({"error": {"message": "Incorrect API key provided"}}, 401),
    "403": answers({"error": {"message": "forbidden"}}, 403),
    "404": answers({"error": {"message": "The model does not exist"}}, 404),
    "redirect": answers(b"", 307, Location="http://127.0.0.1:1/"),
    "204": answers(b"", 204),
    "no JSON": answers(b"<html>ok</html>", 200, "text/html"),
    "a list": answers([]),
    "no choices": answers({"id": "x"}),
    "choices of another kind": answers({"choices": "x"}),
    "bytes that are no text": answers(b'{"choices": [], "x": "\xff\xfe"}'),
    "deep JSON": answers(b'{"choices":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "compressed": answers(b"\x1f\x8b\x08\x00", 200, Content_Encoding="gzip"),
    "hang up": Exchange.hang_up,
    "torn": torn,
    "no HTTP": no_http,
    "too long": endless,
    "too many headers": many_headers,
}
STREAM_DEFECTS: dict[str, Script] = {
    "no stream": answers(chat_answer()),
    "ends at once": begun(),
    "ends with DONE alone": begun(b"data: [DONE]\n\n"),
    "hangs up before an event": begun(b": wait\n\n", then=Exchange.hang_up),
    "garbage": begun(b"data: garbage\n\n"),
    "an error as an event": begun(b'data: {"error": {"message": "no", "code": 500}}\n\n'),
    "a huge line": begun(b"data: " + b"x" * (9 << 20)),
}


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_defect_is_503_and_the_next_provider_answers(box: Service, defect: str, streamed: bool) -> None:
    with fake_upstream(DEFECTS[defect]) as bad, fake_upstream(streaming()) as good:
        single = routed(box, bad, timeout=5)
        answer = ask(box, single, stream=streamed)
        assert answer.status_code == 503, answer.text
        assert int(answer.headers["Retry-After"]) == (7 if "Retry-After" in defect else 10)
        assert answer.json()["error"]["message"]
        assert "key" not in answer.text.lower()
        both = routed(box, bad, good, timeout=5)
        for _ in range(3):
            assert ask(box, both, stream=streamed).status_code == 200


@pytest.mark.parametrize("defect", STREAM_DEFECTS)
def test_a_stream_that_does_not_begin_is_another_providers_to_answer(box: Service, defect: str) -> None:
    with fake_upstream(STREAM_DEFECTS[defect]) as bad, fake_upstream(streaming()) as good:
        assert ask(box, routed(box, bad, timeout=5), stream=True).status_code == 503
        both = routed(box, bad, good, timeout=5)
        for _ in range(3):
            events_of(ask(box, both, stream=True))


@pytest.mark.parametrize("kind", ["text-generation", "automatic-speech-recognition"])
def test_a_server_whose_stream_begins_with_nonsense_is_left_before_the_next_one_answers(
    box: Service, kind: str
) -> None:
    left, asked = threading.Event(), threading.Event()

    def bad(exchange: Exchange) -> None:
        exchange.begin_stream()
        exchange.event("nonsense")
        asked.set()
        if exchange.client_left(5):
            left.set()

    def good(exchange: Exchange) -> None:
        if asked.is_set():
            left.wait(3)
        if kind == "text-generation":
            streaming()(exchange)
            return
        exchange.begin_stream()
        exchange.event({"type": "transcript.text.done", "text": "hello"})
        exchange.end_stream()

    def answer(model: str) -> httpx.Response:
        if kind == "text-generation":
            return ask(box, model, stream=True)
        with box.http as http:
            form = {"model": model, "stream": "true"}
            return http.post("/v1/audio/transcriptions", data=form, files={"file": ("a.wav", b"RIFF")})

    with fake_upstream(bad) as first, fake_upstream(good) as second:
        model = routed(box, first, second, kind=kind, type="openai")
        while not asked.is_set():
            left_meanwhile = answer(model).status_code == 200 and left.is_set()
    assert left_meanwhile


def test_nobody_there_is_said_in_the_contracts_words(box: Service, alone: tuple[FakeUpstream, str]) -> None:
    server, _ = alone
    with fake_upstream(streaming()) as gone:
        model = routed(box, gone)
        both = routed(box, gone, server)
    answer = ask(box, model)
    assert answer.status_code == 503
    assert answer.json()["error"]["message"] == UNAVAILABLE
    assert answer.headers["Retry-After"] == "10"
    for _ in range(3):
        assert ask(box, both).status_code == 200
    person = ask(box, model, "/opengatellm/v1")
    assert (person.status_code, person.json()["detail"]) == (503, UNAVAILABLE)


@pytest.mark.parametrize("streamed", [False, True])
def test_silence_is_a_time_out(box: Service, alone: tuple[FakeUpstream, str], streamed: bool) -> None:
    server, model = alone
    server.script = silent
    started = time.monotonic()
    answer = ask(box, model, stream=streamed)
    assert answer.status_code == 503
    assert answer.json()["error"]["message"] == "Model is too busy (ReadTimeout), please try again later"
    assert 1.5 < time.monotonic() - started < 6


def test_the_time_out_bounds_a_whole_unstreamed_call(box: Service, alone: tuple[FakeUpstream, str]) -> None:
    server, model = alone

    def drip(exchange: Exchange) -> None:
        exchange.begin_stream("application/json")
        for _ in range(40):
            exchange.piece(b" ")
            time.sleep(0.25)

    server.script = drip
    started = time.monotonic()
    assert ask(box, model).status_code == 503
    assert time.monotonic() - started < 6


def test_a_slow_stream_may_last_longer_than_the_time_out(
    box: Service, alone: tuple[FakeUpstream, str]
) -> None:
    server, model = alone
    server.script = streaming([str(digit) for digit in range(6)], pause=0.6)
    started = time.monotonic()
    events_of(ask(box, model, stream=True))
    assert time.monotonic() - started > 3


BREAKS: dict[str, Callable[[Exchange], None]] = {
    "hangs up": Exchange.hang_up,
    "falls silent": silent,
    "ends early": Exchange.end_stream,
    "sends garbage": lambda exchange: exchange.event("garbage"),
    "says an error": lambda exchange: exchange.event({"error": {"message": "out of memory", "code": 500}}),
    "sends a huge line": lambda exchange: exchange.piece(b"data: " + b"x" * (9 << 20)),
}


@pytest.mark.parametrize("end", BREAKS)
@pytest.mark.parametrize("mount", ["/v1", "/opengatellm/v1"])
def test_a_stream_that_breaks_off_ends_with_an_error_event(
    box: Service, alone: tuple[FakeUpstream, str], end: str, mount: str
) -> None:
    server, model = alone
    server.script = begun(b"data: " + json.dumps(chunk("abc")).encode() + b"\n\n", then=BREAKS[end])
    answer = ask(box, model, mount, stream=True)
    assert answer.status_code == 200
    lines = [line for line in answer.text.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line != "data: [DONE]"]
    assert events[0]["choices"][0]["delta"]["content"] == "abc"
    assert "error" in events[-1]
    assert "Model is" in json.dumps(events[-1]["error"])


REFUSALS: list[tuple[int, Any, str]] = [
    (
        400,
        {"object": "error", "message": "ignore_eos must be a boolean", "code": 400},
        "ignore_eos must be a boolean",
    ),
    (
        400,
        {"error": {"message": "too long", "code": "context_length_exceeded", "param": "messages"}},
        "too long",
    ),
    (422, {"detail": "no such thing"}, "no such thing"),
    (413, {"error": "batch too large"}, "batch too large"),
    (400, {"what": ["ever"]}, '{"what": ["ever"]}'),
    (400, b"plain words", "plain words"),
    (400, b"", "Bad request."),
    (400, {"message": {"a": 1}}, '{"message": {"a": 1}}'),
]


@pytest.mark.parametrize(("status", "body", "message"), REFUSALS)
@pytest.mark.parametrize("streamed", [False, True])
def test_what_the_upstream_finds_wrong_is_the_clients_to_know(
    box: Service, alone: tuple[FakeUpstream, str], status: int, body: Any, message: str, streamed: bool
) -> None:
    server, model = alone
    server.script = answers(body, status)
    answer = ask(box, model, stream=streamed)
    assert (answer.status_code, answer.json()["error"]["message"]) == (status, message)
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert answer.json()["error"]["param"] == "messages"
    assert len(server.posted) == 1


ECHOES: dict[str, Callable[[dict[str, str]], Script]] = {
    "a refusal": lambda error: answers({"error": error}, 400),
    "a fault": lambda error: answers({"error": error}, 500),
    "a refused key": lambda error: answers({"error": error}, 401),
    "a refusal in a stream": lambda error: begun(
        b"data: %s\n\n" % json.dumps({"error": {**error, "code": 400}}).encode()
    ),
    "a fault in a stream": lambda error: begun(b"data: %s\n\n" % json.dumps({"error": error}).encode()),
}


@pytest.mark.parametrize("echo", ECHOES)
def test_a_providers_key_that_the_provider_repeats_reaches_neither_the_client_nor_the_log(
    box: Service, upstream: FakeUpstream, echo: str
) -> None:
    model = routed(box, upstream, key=KEY)
    upstream.script = ECHOES[echo]({"message": f"Illegal header value 'Bearer {KEY}'", "type": "x"})
    before = box.log.stat().st_size
    answer = ask(box, model, stream="stream" in echo)
    assert KEY not in answer.text
    with box.log.open() as log:
        log.seek(before)
        assert KEY not in log.read()
    if "refusal" in echo:
        assert "Illegal header value 'Bearer ***'" in answer.text


def test_a_wrong_request_is_not_tried_elsewhere(box: Service) -> None:
    script = answers({"message": "wrong"}, 400)
    with fake_upstream(script) as one, fake_upstream(script) as other:
        assert ask(box, routed(box, one, other)).status_code == 400
        assert len(one.posted) + len(other.posted) == 1


def test_an_address_outside_the_provider_networks_is_not_called(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    data_dir = tmp_path_factory.mktemp("narrow") / "data"
    with fake_upstream(streaming()) as server:
        with running_service(data_dir, APPLIANCE_PROVIDER_NETWORKS=LOOPBACK) as service:
            model = routed(service, server)
            assert ask(service, model).status_code == 200
        with running_service(data_dir) as service:  # the loopback is not among the default networks
            answer = ask(service, model)
        assert (answer.status_code, answer.json()["error"]["message"]) == (503, UNAVAILABLE)
        assert len(server.posted) == 1


def test_boxes_in_a_circle_end_by_themselves(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A box that is its own provider: the request goes round a few times, and is refused."""
    data_dir = tmp_path_factory.mktemp("circle") / "data"
    with running_service(data_dir, APPLIANCE_PROVIDER_NETWORKS=LOOPBACK) as service:
        with fake_upstream(streaming()) as server:
            name = routed(service, server, type="appliance", key=service.key)
        hops = httpx.post(
            f"{service.base_url}/v1/chat/completions",
            json={"model": name, "messages": [{"role": "user", "content": "x"}]},
            headers={"Authorization": f"Bearer {service.key}", "X-Appliance-Hops": "8"},
            trust_env=False,
        )
    assert hops.status_code == 503
    assert "boxes" in service.log.read_text()


def is_healthy(box: Service, model: str) -> bool:
    """Tell whether the one provider of a model counts as one that works."""
    with box.http as http:
        series = Series(http.get("/metrics").text)
    return series.value("appliance_provider_healthy", router=model) == 1


def test_a_client_that_claims_to_come_through_many_boxes_does_not_count_as_a_providers_failure(
    box: Service, upstream: FakeUpstream
) -> None:
    """Three failures turn everybody away from a provider."""
    model = routed(box, upstream, type="appliance")
    body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
    with box.http as http:
        for _ in range(4):
            refused = http.post("/v1/chat/completions", json=body, headers={"X-Appliance-Hops": "8"})
            assert refused.status_code == 503
    assert not upstream.posted
    assert is_healthy(box, model)


def test_answers_that_are_too_large_do_not_count_as_a_providers_failures(
    box: Service, upstream: FakeUpstream
) -> None:
    """Whoever asks for enough gets one, such as the vectors of many texts, and must not turn others away."""
    upstream.script = answers({"data": [{"embedding": [1.0]}]})
    model = routed(box, upstream, kind="text-embeddings-inference")
    upstream.script = lambda exchange: exchange.answer(b'{"data": [' + b" " * (64 << 20) + b"]}")
    with box.http as http:
        for _ in range(4):
            refused = http.post("/v1/embeddings", json={"model": model, "input": "x"})
            assert (refused.status_code, refused.json()["error"]["message"]) == (503, UNAVAILABLE)
    assert is_healthy(box, model)
