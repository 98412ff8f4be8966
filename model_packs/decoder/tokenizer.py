"""Write a ``tokenizer.json`` from the byte-pair vocabulary and merges that a GGUF file carries."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from model_packs.errors import BuildError

# GGUF's token types that matter here.
CONTROL, USER_DEFINED, UNUSED = 3, 4, 5

# What splits text into words before merging, by GGUF's name for it. GPT-2's own pattern is built
# into the byte-level step; the newer ones are spelled out.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_PUNCTUATION = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"\p{N}{1,3}" + _PUNCTUATION
_QWEN2 = _CONTRACTIONS + r"\p{N}" + _PUNCTUATION


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(pattern: str) -> list[dict[str, Any]]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return [split, _byte_level(use_regex=False)]


_DIGITS = [{"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True)]
_PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [_byte_level(use_regex=True)],
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "llama-bpe": _split(_LLAMA3),
    "qwen2": _split(_QWEN2),
}
# Llama 3 looks whole words up before it merges.
_IGNORE_MERGES = {"llama-bpe"}


def tokenizer_json(
    tokens: list[str],
    types: list[int],
    merges: list[str],
    pre: str,
    bos: str | None,
    shown: Collection[str] = (),
) -> str:
    """Return the text of a Hugging Face ``tokenizer.json`` for a byte-level BPE.

    ``tokens`` and ``types`` are by id, ``merges`` are "left right" in rank order, ``pre`` is GGUF's
    ``tokenizer.ggml.pre``, ``bos`` a token that starts every sequence or None, ``shown`` are tokens that
    belong to the text even if they are control tokens by their type. Raises BuildError when the
    pre-tokenizer is unknown: guessing one would give a model that is silently worse.
    """
    if pre not in _PRE_TOKENIZERS:
        raise BuildError(
            f"pre-tokenizer {pre!r} is not served; known are {', '.join(sorted(_PRE_TOKENIZERS))}"
        )
    added = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == CONTROL and token not in shown,
        }
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]
    steps = _PRE_TOKENIZERS[pre]
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps},
        "post_processor": _starts_with(bos, tokens) if bos else None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre in _IGNORE_MERGES,
            "vocab": {token: index for index, token in enumerate(tokens) if types[index] != UNUSED},
            "merges": merges,
        },
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def _starts_with(bos: str, tokens: list[str]) -> dict[str, Any]:
    """Return the post-processor that puts ``bos`` before every sequence."""
    special, first, second = {"SpecialToken": {"id": bos, "type_id": 0}}, "A", "B"
    return {
        "type": "TemplateProcessing",
        "single": [special, {"Sequence": {"id": first, "type_id": 0}}],
        "pair": [
            special,
            {"Sequence": {"id": first, "type_id": 0}},
            {"SpecialToken": {"id": bos, "type_id": 1}},
            {"Sequence": {"id": second, "type_id": 1}},
        ],
        "special_tokens": {bos: {"id": bos, "ids": [tokens.index(bos)], "tokens": [bos]}},
    }
