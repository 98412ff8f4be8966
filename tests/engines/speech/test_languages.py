"""The language table and what a model takes of it."""

from __future__ import annotations

import pytest

from appliance.engines.errors import InputRefusedError
from appliance.engines.speech.languages import LANGUAGES, language_code, require_language


def test_the_table_is_that_of_whisper() -> None:
    import _pywhispercpp as library

    codes = [library.whisper_lang_str(index) for index in range(library.whisper_lang_max_id() + 1)]
    assert list(LANGUAGES) == codes


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("en", "en"),
        ("EN", "en"),
        (" English ", "en"),
        ("castilian", "es"),
        ("Haitian Creole", "ht"),
        ("jv", "jw"),
    ],
)
def test_codes_and_names_are_understood(given: str, code: str) -> None:
    assert language_code(given) == code


@pytest.mark.parametrize("given", ["xx", "klingon", "e", "en-US-", "auto", "\0", "x" * 10_000])
def test_an_unknown_language_is_a_400(given: str) -> None:
    with pytest.raises(InputRefusedError) as caught:
        language_code(given)
    assert caught.value.status == 400
    assert caught.value.param == "language"
    assert len(caught.value.message) < 200


def test_no_language_is_detected_or_english() -> None:
    for nothing in (None, "", "  "):
        assert require_language(nothing, multilingual=True) is None
        assert require_language(nothing, multilingual=False) == "en"


def test_an_english_model_takes_english_only() -> None:
    assert require_language("english", multilingual=False) == "en"
    with pytest.raises(InputRefusedError, match="not French"):
        require_language("fr", multilingual=False)
