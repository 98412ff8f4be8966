"""Whisper's languages: ISO codes and English names."""

from __future__ import annotations

from appliance.engines.errors import InputRefusedError

# In the order of the models' language tokens; the last one is known to large-v3 models only.
LANGUAGES: dict[str, str] = {
    "en": "english",
    "zh": "chinese",
    "de": "german",
    "es": "spanish",
    "ru": "russian",
    "ko": "korean",
    "fr": "french",
    "ja": "japanese",
    "pt": "portuguese",
    "tr": "turkish",
    "pl": "polish",
    "ca": "catalan",
    "nl": "dutch",
    "ar": "arabic",
    "sv": "swedish",
    "it": "italian",
    "id": "indonesian",
    "hi": "hindi",
    "fi": "finnish",
    "vi": "vietnamese",
    "he": "hebrew",
    "uk": "ukrainian",
    "el": "greek",
    "ms": "malay",
    "cs": "czech",
    "ro": "romanian",
    "da": "danish",
    "hu": "hungarian",
    "ta": "tamil",
    "no": "norwegian",
    "th": "thai",
    "ur": "urdu",
    "hr": "croatian",
    "bg": "bulgarian",
    "lt": "lithuanian",
    "la": "latin",
    "mi": "maori",
    "ml": "malayalam",
    "cy": "welsh",
    "sk": "slovak",
    "te": "telugu",
    "fa": "persian",
    "lv": "latvian",
    "bn": "bengali",
    "sr": "serbian",
    "az": "azerbaijani",
    "sl": "slovenian",
    "kn": "kannada",
    "et": "estonian",
    "mk": "macedonian",
    "br": "breton",
    "eu": "basque",
    "is": "icelandic",
    "hy": "armenian",
    "ne": "nepali",
    "mn": "mongolian",
    "bs": "bosnian",
    "kk": "kazakh",
    "sq": "albanian",
    "sw": "swahili",
    "gl": "galician",
    "mr": "marathi",
    "pa": "punjabi",
    "si": "sinhala",
    "km": "khmer",
    "sn": "shona",
    "yo": "yoruba",
    "so": "somali",
    "af": "afrikaans",
    "oc": "occitan",
    "ka": "georgian",
    "be": "belarusian",
    "tg": "tajik",
    "sd": "sindhi",
    "gu": "gujarati",
    "am": "amharic",
    "yi": "yiddish",
    "lo": "lao",
    "uz": "uzbek",
    "fo": "faroese",
    "ht": "haitian creole",
    "ps": "pashto",
    "tk": "turkmen",
    "nn": "nynorsk",
    "mt": "maltese",
    "sa": "sanskrit",
    "lb": "luxembourgish",
    "my": "myanmar",
    "bo": "tibetan",
    "tl": "tagalog",
    "mg": "malagasy",
    "as": "assamese",
    "tt": "tatar",
    "haw": "hawaiian",
    "ln": "lingala",
    "ha": "hausa",
    "ba": "bashkir",
    "jw": "javanese",
    "su": "sundanese",
    "yue": "cantonese",
}

_OTHER_NAMES = {
    "burmese": "my",
    "castilian": "es",
    "flemish": "nl",
    "haitian": "ht",
    "letzeburgesch": "lb",
    "mandarin": "zh",
    "moldavian": "ro",
    "moldovan": "ro",
    "panjabi": "pa",
    "pushto": "ps",
    "sinhalese": "si",
    "valencian": "ca",
    # The ISO code that Whisper spells otherwise.
    "jv": "jw",
}
_CODES = {name: code for code, name in LANGUAGES.items()} | _OTHER_NAMES

# Every code and every name in lower case, and the empty word for none: what OpenGateLLM's clients choose from.
LANGUAGE_WORDS = frozenset({"", *LANGUAGES, *_CODES} - {"jv"})

# Written without spaces between the words.
UNSPACED = frozenset({"zh", "ja", "th", "lo", "my", "km", "bo", "yue"})


def language_code(text: str) -> str:
    """Return the code of a language given as code or English name, in any case.

    Raises InputRefusedError (400) when it is unknown.
    """
    word = text.strip().lower()
    code = word if word in LANGUAGES else _CODES.get(word)
    if code is None:
        shown = text if len(text) <= 40 else text[:40] + "…"
        raise InputRefusedError(
            f"unknown language {shown!r}: give an ISO 639-1 code such as 'en', or leave it out to detect it",
            param="language",
        )
    return code


def require_language(text: str | None, *, multilingual: bool) -> str | None:
    """Return the code to transcribe in, None to detect it.

    An English-only model takes English or nothing. Raises InputRefusedError (400) otherwise.
    """
    if text is None or not text.strip():
        return None if multilingual else "en"
    code = language_code(text)
    if not multilingual and code != "en":
        raise InputRefusedError(
            f"this model understands English only, not {LANGUAGES[code].title()}", param="language"
        )
    return code
