"""Hostile forms get a 4xx, a full disk a 503, and neither memory nor the spool keeps anything of them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from litestar import Litestar, Request, Router, post
from litestar.datastructures import State
from litestar.exceptions import HTTPException

from appliance.api.errors import error_response, http_error_response, internal_error_response
from appliance.api.form import uploaded_form
from appliance.api.monitoring.metrics import Metrics
from appliance.errors import ApplianceError
from appliance.storage.spool import RESERVED_BYTES, Spool
from tests.service import running_service

ROUTE = "/v1/audio/transcriptions"
KIND = "multipart/form-data; boundary=x"
LIMIT = 8 << 20

FILE = ('form-data; name="file"; filename="a.wav"', b"RIFF")
MODEL = ('form-data; name="model"', b"no-such-model")


def part(disposition: str, value: bytes, *headers: str) -> bytes:
    lines = [f"Content-Disposition: {disposition}", *headers]
    return b"--x\r\n" + "\r\n".join(lines).encode() + b"\r\n\r\n" + value + b"\r\n"


def body(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--x--\r\n"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Start the program without models: a form that passes every check ends in 404."""
    with running_service(
        tmp_path_factory.mktemp("forms") / "data", APPLIANCE_MAX_UPLOAD_BYTES=str(LIMIT)
    ) as service:
        with service.http as http:
            yield http
        log = service.log.read_text()
        assert "Traceback" not in log, log[-5000:]
        assert list((service.data_dir / "spool").iterdir()) == []


def send(http: httpx.Client, content: Any, kind: str = KIND) -> httpx.Response:
    return http.post(ROUTE, content=content, headers={"Content-Type": kind})


def refused(response: httpx.Response, status: int = 400) -> str:
    assert response.status_code == status, response.text[:500]
    assert len(response.content) < 1000
    message: str = response.json()["error"]["message"]
    return message


def test_a_good_form_reaches_the_catalog(bare: httpx.Client) -> None:
    assert "no-such-model" in refused(send(bare, body(part(*FILE), part(*MODEL))), 404)


@pytest.mark.parametrize(
    "content",
    [
        b"\r\n" + body(part(*MODEL), part(*FILE)),  # a line break first, as some clients send
        body(part(*MODEL), part(*FILE)) + b"an epilogue" * 10_000,
        b"a preamble\r\n" + body(part(*MODEL), part(*FILE)),
        body(part(*MODEL, "Content-Type: text/plain; charset=ISO-8859-1"), part(*FILE)),
        body(part(*MODEL, "Content-Type: text/plain; charset=foo"), part(*FILE)),
        body(part(*MODEL, "Content-Type: text/plain; charset=utf-7"), part(*FILE)),
        body(part(*MODEL, "Content-Type: text/plain; charset=punycode"), part(*FILE)),
        body(part(*MODEL), part('form-data; name="file"; filename="../../etc/passwd"', b"x")),
        body(part(*MODEL), part('form-data; name="file"; filename="a\\"b\\\\\\"c.wav"', b"x")),
        body(part(*MODEL), part('form-data; name="file"; filename=""', b"")),
        body(part(*MODEL), part("form-data; name=\"file\"; filename*=utf-8''%ff; filename=x", b"x")),
        body(part(*MODEL), part("form-data; name=file; filename=a\0b", b"x")),
        body(part('form-data; name="model"', "modèle 🎙".encode()), part(*FILE)),
        body(part('form-data; name="model"', b"+2AA-", "Content-Type: a; charset=utf-7"), part(*FILE)),
    ],
)
def test_what_is_only_unusual_is_read(bare: httpx.Client, content: bytes) -> None:
    refused(send(bare, content), 404)


@pytest.mark.parametrize(
    "parts",
    [
        [part('form-data; name="cover"; filename="a.png"', b"\0" * 300_000), part(*FILE), part(*MODEL)],
        [part(*FILE), part(*MODEL), part('form-data; name="cover"; filename="a.png"', b"")],
        [part(*FILE), part(*MODEL), part('form-data; name="prompt"; filename="a.txt"', b"\xff")],
    ],
)
def test_files_that_are_not_asked_for_are_read_past(bare: httpx.Client, parts: list[bytes]) -> None:
    refused(send(bare, body(*parts)), 404)


@pytest.mark.parametrize(
    "content",
    [
        b"model=a&" * 100_000,
        b"model=%ff",
        b"\xff\xfe=a",
        b"model=" + b"a" * 70_000,
        b"a=b&" * 65,
        b"&&&===%%%",
        b"",
    ],
)
def test_a_hostile_form_without_files_is_refused(bare: httpx.Client, content: bytes) -> None:
    refused(send(bare, content, "application/x-www-form-urlencoded; charset=foo"))


def test_a_form_without_files_has_a_size_limit(bare: httpx.Client) -> None:
    refused(send(bare, b"prompt=" + b"a" * (2 << 20), "application/x-www-form-urlencoded"), 413)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"--x",
        b"--x--",
        body(),
        body(part(*MODEL)),
        body(part(*FILE)),
        body(part(*MODEL), part(*FILE))[:-6],  # truncated before the end mark
        body(part(*MODEL), part(*FILE))[:30],
        body(part(*MODEL), part(*FILE)).replace(b"--x", b"--y"),
        body(part(*MODEL), part(*FILE)).replace(b"\r\n", b"\n"),
        body(part(*MODEL), part(*FILE), part(*FILE)),
        body(part(*MODEL), part('form-data; name="file"', b"text")),
        body(part('form-data; name="model"; filename="m"', b"no-such-model"), part(*FILE)),
        body(part('form-data; name="model"', b"\xff\xfe"), part(*FILE)),
        body(part('form-data; name="model"', b"\xed\xa0\x80"), part(*FILE)),  # a lone surrogate
        body(part('attachment; name="model"', b"m"), part(*FILE)),
        body(part(*MODEL, "Content-Length: 5"), part(*FILE)),
        body(part(*MODEL, "Content-Length: " + "9" * 4000), part(*FILE)),
        body(part(*MODEL, "no colon"), part(*FILE)),
        body(part(*MODEL, *["X-Header: y"] * 100), part(*FILE)),
        body(part(*MODEL, "X-Header: " + "y" * 10_000), part(*FILE)),
        b"--x\r\nContent-Disposition: " + b"form-data; " * 100_000,
        b"--x\r\n\r\n\r\n--x--",
        b"--x\r\nContent-Disposition: form-data; name=\xff\r\n\r\nm\r\n--x--\r\n",
        b"--x\r\n Content-Disposition: form-data\r\n\r\nm\r\n--x--\r\n",
        body(part(f'form-data; name="{"n" * 3000}"; filename=f', b"m")),
        body(*[part(f'form-data; name="f{n}"', b"v") for n in range(1000)], part(*MODEL), part(*FILE)),
        b"\x00\xff\r\n--" * 10_000,
        b"\r" * 1_000_000,
        b"--x\r\n" * 100_000,
    ],
)
def test_what_is_malformed_is_a_400_that_repeats_little(bare: httpx.Client, content: bytes) -> None:
    refused(send(bare, content))


@pytest.mark.parametrize(
    "kind",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        'multipart/form-data; boundary="x',
        'multipart/form-data; boundary="\\"x\\""',
        "multipart/form-data; boundary=y",
        "multipart/form-data; boundary=" + "x" * 257,
        "multipart/form-data; boundary*=utf-8''x",
        "multipart/form-data; charset=foo",
        "multipart/mixed; boundary=x",
        "application/x-www-form-urlencoded",
        "",
        ";" * 1000,
    ],
)
def test_a_wrong_boundary_or_type_is_a_400(bare: httpx.Client, kind: str) -> None:
    refused(send(bare, body(part(*MODEL), part(*FILE)), kind))


def test_a_quoted_boundary_is_read(bare: httpx.Client) -> None:
    content = body(part(*MODEL), part(*FILE)).replace(b"--x", b"--a b:c")
    refused(send(bare, content, 'multipart/form-data; boundary="a b:c"'), 404)


@pytest.mark.parametrize("name", ["model", "prompt", "language", "temperature", "unknown"])
def test_text_fields_have_a_size_limit(bare: httpx.Client, name: str) -> None:
    fits = part(f'form-data; name="{name}"', b"v" * (64 << 10))
    large = part(f'form-data; name="{name}"', b"v" * ((64 << 10) + 1))

    assert "at most" in refused(send(bare, body(large, part(*FILE), part(*MODEL))))
    assert "at most" not in send(bare, body(fits, part(*FILE), part(*MODEL))).text


@pytest.mark.parametrize("name", ["model", "language", "temperature", "response_format", "stream"])
def test_a_long_value_is_not_repeated_in_full(bare: httpx.Client, name: str) -> None:
    fields = body(part(f'form-data; name="{name}"', b"v" * 1000), part(*FILE), part(*MODEL))
    response = send(bare, fields)

    assert response.status_code in (400, 404)
    assert "v" * 101 not in response.text


@pytest.mark.parametrize("chunked", [False, True])
def test_an_upload_over_the_limit_is_413(bare: httpx.Client, chunked: bool) -> None:
    content = body(part(*MODEL), part(FILE[0], b"\0" * (LIMIT + 1)))
    pieces = (content[start : start + 65536] for start in range(0, len(content), 65536))

    refused(send(bare, pieces if chunked else content), 413)


TOKENS = [
    b"--x", b"--x--", b"\r\n", b"\r", b"\n", b"--", b"Content-Disposition: form-data", b"; name=file", b"; name=model",
    b'; filename="', b'"', b"\\", b"Content-Type: text/plain; charset=", b"utf-7", b"Content-Length: ", b"3", b"\xff",
    b"%22", b": ", b";", b" ",
    part(*FILE), part(*MODEL),
]  # fmt: skip
HOSTILE = st.binary(max_size=300) | st.lists(
    st.sampled_from(TOKENS) | st.binary(max_size=5), max_size=30
).map(b"".join)


@settings(max_examples=200)
@given(content=HOSTILE)
def test_no_body_makes_a_server_error(bare: httpx.Client, content: bytes) -> None:
    assert send(bare, content).status_code in (400, 404)


@settings(max_examples=100)
@given(disposition=st.binary(max_size=60), content=HOSTILE)
def test_no_part_header_makes_a_server_error(bare: httpx.Client, disposition: bytes, content: bytes) -> None:
    head = b"--x\r\nContent-Disposition: form-data; name=" + disposition
    response = send(bare, head + b"\r\n\r\n" + content + b"\r\n" + body(part(*MODEL), part(*FILE)))

    assert response.status_code in (400, 404), response.text


def application(spool: Spool) -> Litestar:
    """Return a service of one route that answers with the sizes of what it read."""

    @post("/form", status_code=200)
    async def read(request: Request[Any, Any, Any]) -> dict[str, int]:
        async with uploaded_form(request, spool, file_field="file", max_bytes=LIMIT) as form:
            assert form.file is not None
            return {"file": form.file.size} | {name: len(values) for name, values in form.fields.items()}

    return Litestar(
        [Router("/", route_handlers=[read], request_max_body_size=LIMIT)],
        exception_handlers={
            ApplianceError: error_response,
            HTTPException: http_error_response,
            Exception: internal_error_response,
        },
        state=State({"metrics": Metrics()}),
        logging_config=None,
        openapi_config=None,
    )


async def post_to(app: Litestar, content: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app)  # type: ignore[arg-type] # Litestar's own ASGI types
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        return await http.post("/form", content=content, headers={"Content-Type": KIND})


async def in_chunks(content: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


@pytest.mark.parametrize("size", [1, 7, 1000, 100_000])
async def test_the_chunks_of_a_body_do_not_matter(tmp_path: Path, size: int) -> None:
    file = b"\r\n--y\r\n-" * (100 if size < 100 else 100_000)
    content = body(part(*MODEL), part(FILE[0], file), part(*MODEL))
    response = await post_to(application(Spool(tmp_path)), in_chunks(content, size))

    assert response.json() == {"file": len(file), "model": 2}


async def test_an_announced_upload_without_room_is_refused_at_once(tmp_path: Path) -> None:
    spool = Spool(tmp_path, free=lambda _: RESERVED_BYTES + 1_000_000)
    refusal = await post_to(application(spool), body(part(FILE[0], b"\0" * 1_000_000)))
    assert refusal.status_code == 503
    assert refusal.headers["retry-after"]

    assert (await post_to(application(spool), body(part(FILE[0], b"\0" * 900_000)))).status_code == 200


async def test_a_disk_that_fills_up_during_a_chunked_upload_is_a_503(tmp_path: Path) -> None:
    left = [RESERVED_BYTES + 2_000_000]

    def free(_: Path) -> int:
        left[0] -= 300_000  # somebody else is writing too
        return left[0]

    content = body(part(*MODEL), part(FILE[0], b"\0" * 6_000_000))
    response = await post_to(application(Spool(tmp_path, free)), in_chunks(content, 65536))

    assert response.status_code == 503
    assert "disk space" in response.json()["error"]["message"]
    assert list(tmp_path.iterdir()) == []


async def test_a_client_that_leaves_makes_no_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    messages: list[Any] = [
        {"type": "http.request", "body": part(FILE[0], b"\0" * 600_000), "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send_back(message: Any) -> None:
        sent.append(message)

    scope: Any = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/form",
        "raw_path": b"/form",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", KIND.encode())],
        "client": ("test", 1),
        "server": ("test", 2),
    }
    with caplog.at_level(logging.DEBUG):
        await application(Spool(tmp_path))(scope, receive, send_back)

    assert sent[0]["status"] == 499
    assert not [record for record in caplog.records if record.exc_info]
