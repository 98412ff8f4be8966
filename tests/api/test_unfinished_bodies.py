"""A client that leaves before its request is whole is no fault of the service."""

from __future__ import annotations

import re
import socket

import pytest

from tests.api.test_concurrency import wait_for
from tests.service import Service


def answered(service: Service, status: int) -> float:
    with service.http as http:
        text = http.get("/metrics").text
    counts = re.findall(rf'^appliance_requests_total{{.*status="{status}".*}} (\S+)$', text, re.MULTILINE)
    return sum(map(float, counts))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank"])
@pytest.mark.parametrize("sent", [b"", b'{"model": "'], ids=["nothing", "half"])
def test_a_client_that_leaves_within_its_body_is_no_server_error(
    service: Service, path: str, sent: bytes
) -> None:
    failures, gone = answered(service, 500), answered(service, 499)
    logged = service.log.read_text().count("Traceback")
    host, port = service.base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 1000\r\n\r\n%s"
            % (path.encode(), service.key.encode(), sent)
        )
    wait_for(lambda: answered(service, 499) == gone + 1)

    assert answered(service, 500) == failures
    assert service.log.read_text().count("Traceback") == logged
