"""Documents that are read by other servers: what goes there, what comes back."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.upstreams import add_provider, make_router, routed
from tests.gateway.upstream.fake import MODEL, FakeUpstream
from tests.people import limits, make_person, make_role
from tests.service import Service


def test_ocr_is_forwarded_with_its_pages_spelt_out(box: Service, upstream: FakeUpstream) -> None:
    name = routed(box, upstream, kind="image-to-text", type="mistral")
    page = {"index": 0, "markdown": "# Title", "images": [], "dimensions": None}
    upstream.script = lambda exchange: exchange.answer(
        {"pages": [page], "usage_info": {"pages_processed": 1}}
    )
    document = {"type": "document_url", "document_url": "data:application/pdf;base64,AAAA"}
    for mount in ("/v1", "/opengatellm/v1"):
        with box.http as http:
            answer = http.post(
                f"{mount}/ocr", json={"model": name, "document": document, "pages": [0, "2-4", 3]}
            )
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == name
        assert answer.json()["pages"] == [page]
        assert answer.json()["usage_info"] == {"pages_processed": 1}
        assert answer.json()["usage"]["completion_tokens"] == 2
        assert answer.json()["id"].startswith("request-")
        sent = upstream.posted[-1]
        assert sent.path == "/v1/ocr"
        assert sent.json == {"model": MODEL, "document": document, "pages": [0, 2, 3, 4]}
    with box.http as http:
        assert http.post("/v1/ocr", json={"document": document}).json()["model"] == name


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({}, [["a", "b"], None, ["c", "d"]]),
        ({"image_limit": None, "image_min_size": None}, [["a", "b"], None, ["c", "d"]]),
        ({"image_limit": 3}, [["a", "b"], None, ["c"]]),
        ({"image_limit": 0}, [[], None, []]),
        ({"image_min_size": 100}, [["b"], None, ["d"]]),
        ({"image_min_size": 50, "image_limit": 2}, [["a", "b"], None, []]),
        ({"image_min_size": 51, "image_limit": 2}, [["b"], None, ["d"]]),
    ],
)
def test_a_read_document_has_as_many_images_and_as_large_as_was_asked(
    box: Service, upstream: FakeUpstream, fields: dict[str, Any], kept: list[Any]
) -> None:
    def image(name: str, *corners: int | None) -> dict[str, Any]:
        places = ("top_left_x", "top_left_y", "bottom_right_x", "bottom_right_y")
        return {"id": name, **dict(zip(places, corners, strict=False)), "image_base64": None}

    name = routed(box, upstream, kind="image-to-text", type="mistral")
    first = [image("a", 10, 0, 210, 50), image("b", 0, 0, 100, 100)]
    # One of unknown size is not known to be small.
    last = [image("c", 0, 0, 40, 400), image("d")]
    pages = [{"index": 0, "markdown": "x", "images": first}, {"index": 1, "images": None}]
    upstream.script = lambda exchange: exchange.answer({"pages": [*pages, {"index": 2, "images": last}]})
    document = {"type": "document_url", "document_url": "data:application/pdf;base64,AAAA"}
    with box.http as http:
        answer = http.post("/v1/ocr", json={"model": name, "document": document, **fields})
    assert answer.status_code == 200, answer.text
    shown = [page["images"] for page in answer.json()["pages"]]
    assert [images and [each["id"] for each in images] for images in shown] == kept


def test_a_schema_of_annotations_is_needed_where_they_are_held_to_one(
    box: Service, upstream: FakeUpstream
) -> None:
    name = routed(box, upstream, kind="image-to-text", type="mistral")
    document = {"type": "document_url", "document_url": "data:application/pdf;base64,AAAA"}
    held = {"type": "json_schema", "json_schema": {"name": "a"}}
    with box.http as http:
        body = {"model": name, "document": document, "bbox_annotation_format": held}
        answer = http.post("/opengatellm/v1/ocr", json=body)
    assert answer.status_code == 422, answer.text
    place = ["body", "bbox_annotation_format", "json_schema", "schema_definition"]
    assert [wrong["loc"] for wrong in answer.json()["detail"]] == [place]
    assert upstream.posted == []


def test_the_union_says_of_models_that_read_documents_what_the_only_api_that_has_them_says(
    box: Service, upstream: FakeUpstream
) -> None:
    router, name = make_router(box, "image-to-text", cost_completion_tokens=1.0)
    add_provider(box, router, upstream.base_url, type="mistral")
    poor = make_person(box, make_role(box), budget=0)
    limited = make_person(box, make_role(box, limits=limits(router)[1:]))
    chat = routed(box, upstream)
    document = {"type": "document_url", "document_url": "data:application/pdf;base64,AAAA"}
    for person, model, status, detail in (
        (poor, "no-such-model", 404, "Model not found."),
        (poor, chat, 422, "Wrong model type."),
        (poor, name, 400, "Insufficient budget."),
        (limited, name, 403, "Insufficient permissions to access the model."),
    ):
        with person.http as http:
            for mount in ("/v1", "/opengatellm/v1"):
                answer = http.post(f"{mount}/ocr", json={"model": model, "document": document})
                assert (answer.status_code, answer.json()["detail"]) == (status, detail)
    assert upstream.posted == []


def test_the_default_model_is_one_that_the_role_may_use(box: Service, upstream: FakeUpstream) -> None:
    upstream.script = lambda exchange: exchange.answer({"pages": [{"index": 0, "markdown": "x"}]})
    routers = sorted((make_router(box, "image-to-text") for _ in range(2)), key=lambda made: made[1])
    for router, _ in routers:
        add_provider(box, router, upstream.base_url, type="mistral")
    (first, _), (last, name) = routers
    person = make_person(box, make_role(box, limits=[*limits(first)[1:], *limits(last)]))
    document = {"type": "document_url", "document_url": "data:application/pdf;base64,AAAA"}
    with person.http as http:
        answer = http.post("/v1/ocr", json={"document": document})
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == name


@pytest.mark.parametrize(
    "pages", [-1, "a", "3-1", "1-2-3", [0, "x"], "0-999999", [2**70], True, 1.5, "", ["--"]]
)
def test_pages_that_are_none_are_refused(box: Service, upstream: FakeUpstream, pages: Any) -> None:
    name = routed(box, upstream, kind="image-to-text", type="mistral")
    document = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with box.http as http:
        answer = http.post("/v1/ocr", json={"model": name, "document": document, "pages": pages})
    assert answer.status_code == 422, answer.text
    assert upstream.posted == []
