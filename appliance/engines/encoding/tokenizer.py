"""The tokenizer of an encoder pack: texts to token ids, never truncated unless asked.

Nothing here is async: the engines call it in their thread, in slices, because a call holds the
interpreter while it copies texts in and ids out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from appliance.engines.encoding.forward import Ids, TokenSequence
from appliance.packs.errors import PackError

SLICE_CHARACTERS = 1 << 16
SLICE_TEXTS = 64
# A text of which only the first n tokens are wanted is tried with so many characters a token, then
# with more, and never with more than the last: text with fewer tokens than that (blanks, a word of
# thousands of letters) would cost minutes a request and say nothing.
CHARACTERS_PER_TOKEN = (8, 32)
# Where no white space is near, a cut may change the tokens of the last word: so many are not trusted.
# (WordPiece reads at most 100 characters as a word.)
CUT_MARGIN = 128
# Characters that every tokenizer ends a word before; some others that Python calls space are not.
WHITE_SPACE = " \t\r\n"


class PairTemplate(NamedTuple):
    """What the tokenizer puts around a pair of texts: special tokens and segment ids."""

    before: TokenSequence
    between: TokenSequence
    after: TokenSequence
    first_type: int
    second_type: int

    @property
    def special_tokens(self) -> int:
        """How many tokens of the context the template takes."""
        return len(self.before.ids) + len(self.between.ids) + len(self.after.ids)

    def join(self, first: Ids, second: Ids) -> TokenSequence:
        """Return the pair as one sequence."""
        ids = np.concatenate([self.before.ids, first, self.between.ids, second, self.after.ids])
        type_ids = np.concatenate(
            [
                _types(self.before),
                np.full(len(first), self.first_type, dtype=np.int64),
                _types(self.between),
                np.full(len(second), self.second_type, dtype=np.int64),
                _types(self.after),
            ]
        )
        return TokenSequence(ids, type_ids)


class TextTokenizer:
    """A ``tokenizer.json`` with its padding and truncation switched off."""

    def __init__(self, path: Path) -> None:
        """Load the tokenizer. Raises PackError when the file is not one."""
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises the bare class
            raise PackError(f"cannot load {path.name}: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.vocab_size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, texts: list[str], *, special_tokens: bool = True) -> Iterator[Encoding]:
        """Yield the encoding of each text, in order, of whatever length."""
        for part in _slices(texts):
            yield from self._tokenizer.encode_batch_fast(part, add_special_tokens=special_tokens)

    def first_tokens(self, texts: list[str], count: int) -> Iterator[Ids]:
        """Yield the first ``count`` ids of each text (all, if it has fewer) without special tokens, int64.

        The same ids as of the whole text, without tokenising the whole of a long one: a prefix is
        cut before white space, where no token runs across, and lengthened once when it has no tokens
        to spare. What lies beyond the longer prefix is not read.
        """
        first_window, last_window = (count * characters for characters in CHARACTERS_PER_TOKEN)
        prefixes = [_prefix(text, first_window) for text in texts]
        encodings = self.encode(prefixes, special_tokens=False)
        for text, prefix, encoding in zip(texts, prefixes, encodings, strict=True):
            taken = encoding
            if len(prefix) < len(text) and len(encoding) < count + CUT_MARGIN:
                (taken,) = self.encode([_prefix(text, last_window)], special_tokens=False)
            yield np.array(taken.ids[:count], dtype=np.int64)

    def pair_template(self) -> PairTemplate:
        """Return how this tokenizer joins two texts. Raises PackError when it does not keep their order."""
        encoding = self._tokenizer.encode("a", "b", add_special_tokens=True)
        sources = encoding.sequence_ids
        if 0 not in sources or 1 not in sources:
            raise PackError("the tokenizer cannot join two texts")
        first, second = sources.index(0), sources.index(1)
        first_end, second_end = first + sources.count(0), second + sources.count(1)
        if first_end > second or any(source is not None for source in sources[second_end:]):
            raise PackError("the tokenizer does not keep the order of two texts")
        return PairTemplate(
            before=_part(encoding, 0, first),
            between=_part(encoding, first_end, second),
            after=_part(encoding, second_end, len(sources)),
            first_type=encoding.type_ids[first],
            second_type=encoding.type_ids[second],
        )


def longest_first(first: int, second: int, budget: int) -> tuple[int, int]:
    """Return how many tokens two texts of these lengths keep so that they fit ``budget`` together.

    The longer one is cut first, down to the shorter one's length, then both alike, the odd token
    staying with the longer: what cross-encoders are trained and run with ("longest_first").
    """
    if first + second <= budget:
        return first, second
    short = min(first, second, budget // 2)
    return (short, budget - short) if first <= second else (budget - short, short)


def _slices(texts: list[str]) -> Iterator[list[str]]:
    part: list[str] = []
    characters = 0
    for text in texts:
        if part and (characters + len(text) > SLICE_CHARACTERS or len(part) == SLICE_TEXTS):
            yield part
            part, characters = [], 0
        part.append(text)
        characters += len(text)
    if part:
        yield part


def _prefix(text: str, window: int) -> str:
    """Return at most ``window`` characters, cut before white space if the last quarter has some."""
    if len(text) <= window:
        return text
    end = max(text.rfind(blank, window - window // 4, window + 1) for blank in WHITE_SPACE)
    return text[:window] if end < 0 else text[:end]


def _part(encoding: Encoding, start: int, end: int) -> TokenSequence:
    return TokenSequence(
        np.array(encoding.ids[start:end], dtype=np.int64),
        np.array(encoding.type_ids[start:end], dtype=np.int64),
    )


def _types(part: TokenSequence) -> Ids:
    return np.zeros(len(part.ids), dtype=np.int64) if part.type_ids is None else part.type_ids
