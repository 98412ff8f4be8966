"""Every text names its encoding once: strict readers refuse a parameter that stands twice."""

from __future__ import annotations

import pytest

from appliance.api.documentation import ASSETS_PATH
from tests.api.asking import post_chat
from tests.samples.speech import jfk_wav
from tests.service import SPEECH, Service


def test_a_stream_of_events_is_utf_8(service: Service) -> None:
    assert post_chat(service, stream=True).headers["content-type"] == "text/event-stream; charset=utf-8"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8"),
        ("/docs", "text/html; charset=utf-8"),
        ("/docs/start.js", "text/javascript; charset=utf-8"),
        (f"{ASSETS_PATH}/swagger-ui.css", "text/css; charset=utf-8"),
        (f"{ASSETS_PATH}/swagger-ui-bundle.js", "text/javascript; charset=utf-8"),
    ],
)
def test_a_page_is_utf_8(service: Service, path: str, kind: str) -> None:
    with service.http as http:
        response = http.get(path)

    assert response.status_code == 200
    assert response.headers["content-type"] == kind


@pytest.mark.parametrize(
    ("form", "kind"),
    [("text", "text/plain"), ("vtt", "text/vtt"), ("srt", "application/x-subrip")],
)
def test_a_transcript_is_utf_8(service: Service, form: str, kind: str) -> None:
    with service.http as http, jfk_wav().open("rb") as file:
        fields = {"model": SPEECH, "response_format": form, "language": "en"}
        response = http.post("/v1/audio/transcriptions", data=fields, files={"file": file})

    assert response.headers["content-type"] == f"{kind}; charset=utf-8"
