"""Prompts that no cache has seen: words of English prose in random order, cut to an exact number of tokens."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

SAMPLE = Path(__file__).resolve().parents[2] / "model_packs" / "samples" / "english.txt"


class ColdPrompts:
    """Token ids that both sides get alike; every seed gives another text from its first word on."""

    def __init__(self, tokenizer: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer: Any = Tokenizer.from_file(str(tokenizer))
        self._words = SAMPLE.read_text("utf-8").split()

    def ids(self, seed: str, tokens: int) -> list[int]:
        """Return ``tokens`` token ids drawn with ``seed``."""
        # Every word is at least one token.
        text = " ".join(random.Random(seed).choices(self._words, k=tokens))
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids[:tokens]
        if len(found) < tokens:
            raise ValueError(f"{tokens} words made only {len(found)} tokens")
        return found
