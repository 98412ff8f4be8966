"""What is wrong with a body, in FastAPI's words."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.api.body import decoded
from appliance.api.field_errors import InvalidFieldError
from appliance.api.openai.generation.chat import SearchChatRequest
from appliance.api.validation import field_errors
from tests.service import Service


class Inner(msgspec.Struct):
    """Something inside."""

    size: Annotated[int, msgspec.Meta(ge=0)]


class Sample(msgspec.Struct, kw_only=True):
    """One field of each kind."""

    count: Annotated[int, msgspec.Meta(gt=0, le=100)] = 1
    ratio: Annotated[float, msgspec.Meta(ge=0, lt=1)] | None = None
    name: Annotated[str, msgspec.Meta(min_length=2, max_length=4)] = "abc"
    flag: bool = False
    order: Literal["one", "two", "three"] = "one"
    only: Literal["float"] = "float"
    names: Annotated[list[str], msgspec.Meta(min_length=1, max_length=2)] = msgspec.field(
        default_factory=lambda: ["a"]
    )
    numbers: dict[str, float] = {}
    inner: Inner | None = None


@pytest.mark.parametrize(
    ("fields", "location", "kind", "message", "ctx"),
    [
        ({"count": 0}, ["count"], "greater_than", "Input should be greater than 0", {"gt": 0}),
        (
            {"count": 101},
            ["count"],
            "less_than_equal",
            "Input should be less than or equal to 100",
            {"le": 100},
        ),
        (
            {"count": "x"},
            ["count"],
            "int_parsing",
            "Input should be a valid integer, unable to parse string as an integer",
            None,
        ),
        (
            {"count": "١"},
            ["count"],
            "int_parsing",
            "Input should be a valid integer, unable to parse string as an integer",
            None,
        ),
        (
            {"count": 1e30},
            ["count"],
            "int_parsing_size",
            "Unable to parse input string as an integer, exceeded maximum size",
            None,
        ),
        (
            {"count": 1.5},
            ["count"],
            "int_from_float",
            "Input should be a valid integer, got a number with a fractional part",
            None,
        ),
        ({"count": []}, ["count"], "int_type", "Input should be a valid integer", None),
        ({"count": None}, ["count"], "int_type", "Input should be a valid integer", None),
        (
            {"ratio": -1},
            ["ratio"],
            "greater_than_equal",
            "Input should be greater than or equal to 0",
            {"ge": 0},
        ),
        ({"ratio": 1}, ["ratio"], "less_than", "Input should be less than 1", {"lt": 1}),
        (
            {"ratio": "x"},
            ["ratio"],
            "float_parsing",
            "Input should be a valid number, unable to parse string as a number",
            None,
        ),
        ({"ratio": {}}, ["ratio"], "float_type", "Input should be a valid number", None),
        (
            {"name": "a"},
            ["name"],
            "string_too_short",
            "String should have at least 2 characters",
            {"min_length": 2},
        ),
        (
            {"name": "abcde"},
            ["name"],
            "string_too_long",
            "String should have at most 4 characters",
            {"max_length": 4},
        ),
        ({"name": 5}, ["name"], "string_type", "Input should be a valid string", None),
        (
            {"flag": "perhaps"},
            ["flag"],
            "bool_parsing",
            "Input should be a valid boolean, unable to interpret input",
            None,
        ),
        ({"flag": []}, ["flag"], "bool_type", "Input should be a valid boolean", None),
        (
            {"order": "four"},
            ["order"],
            "enum",
            "Input should be 'one', 'two' or 'three'",
            {"expected": "'one', 'two' or 'three'"},
        ),
        ({"only": "base64"}, ["only"], "literal_error", "Input should be 'float'", {"expected": "'float'"}),
        (
            {"names": []},
            ["names"],
            "too_short",
            "List should have at least 1 item after validation, not 0",
            {"field_type": "List", "min_length": 1, "actual_length": 0},
        ),
        (
            {"names": ["a", "b", "c"]},
            ["names"],
            "too_long",
            "List should have at most 2 items after validation, not 3",
            {"field_type": "List", "max_length": 2, "actual_length": 3},
        ),
        ({"names": "a"}, ["names"], "list_type", "Input should be a valid list", None),
        ({"names": [5]}, ["names", 0], "string_type", "Input should be a valid string", None),
        ({"numbers": 1}, ["numbers"], "dict_type", "Input should be a valid dictionary", None),
        (
            {"numbers": {"a": "x"}},
            ["numbers", "a"],
            "float_parsing",
            "Input should be a valid number, unable to parse string as a number",
            None,
        ),
        ({"inner": {}}, ["inner", "size"], "missing", "Field required", None),
        (
            {"inner": 5},
            ["inner"],
            "model_attributes_type",
            "Input should be a valid dictionary or object to extract fields from",
            None,
        ),
    ],
)
def test_each_rule_has_the_words_of_fastapi(
    fields: dict[str, Any], location: list[Any], kind: str, message: str, ctx: dict[str, Any] | None
) -> None:
    body = msgspec.json.encode(fields)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(body, type=Sample, strict=False)
    (error,) = field_errors(body, Sample)

    assert (error.loc, error.type, error.msg) == (["body", *location], kind, message)
    assert error.ctx == (msgspec.UNSET if ctx is None else ctx)


@pytest.mark.parametrize(
    "body", [b'{"stream": "yes", "max_tokens": "many"}', b'{"stream": "on", "max_tokens": 1e300}']
)
async def test_the_field_that_is_said_to_be_wrong_is_not_one_that_is_taken_in_this_form(body: bytes) -> None:
    with pytest.raises(InvalidFieldError, match=r"^max_tokens: ") as refused:
        await decoded(b'{"model": "m", "messages": [], ' + body[1:], SearchChatRequest)
    assert refused.value.param == "max_tokens"


def test_all_that_is_wrong_is_listed() -> None:
    errors = field_errors(b'{"count": 0, "flag": "x", "names": [1, "a"]}', Sample)

    assert [error.loc for error in errors] == [["body", "count"], ["body", "flag"], ["body", "names", 0]]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
FIELDS = st.sampled_from(SearchChatRequest.__struct_fields__)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(FIELDS, JSON, max_size=6) | JSON)
def test_what_is_wrong_with_any_body_can_be_said(value: Any) -> None:
    body = msgspec.json.encode(value)
    try:
        msgspec.json.decode(body, type=SearchChatRequest, strict=False)
        right = True
    except msgspec.ValidationError:
        right = False
    errors = field_errors(body, SearchChatRequest)

    msgspec.json.encode(errors)
    assert all(error.loc[0] == "body" and error.msg and error.type for error in errors)
    if not right and isinstance(value, dict) and "messages" in value and "model" in value:
        assert errors or len(value) > 2
    if not isinstance(value, dict):
        assert [error.type for error in errors] == ["missing" if value is None else "model_attributes_type"]
    elif "model" not in value:
        assert any((error.loc, error.type) == (["body", "model"], "missing") for error in errors)


def test_a_list_of_wrong_fields_is_bounded(bare_service: Service) -> None:
    body = {"model": "m", "messages": [{}] * 1000, "stop": "x" * 5000}
    errors = field_errors(msgspec.json.encode(body), SearchChatRequest)

    assert len(errors) == 50
    with bare_service.http as http:
        answer = http.post("/opengatellm/v1/admin/organizations", json={"name": ["x" * 100_000]})
    assert answer.status_code == 422
    assert len(answer.content) < 5000
