"""Small tokenizers of the two common kinds, made on the spot."""

from __future__ import annotations

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

CONTROL_TOKENS = ["<|im_start|>", "<|im_end|>", "<|end|>"]
CORPUS = [
    "The quick brown fox jumps over the lazy dog. user assistant system",
    "Über den Wolken, где-то далеко, 今日は良い天気です 👍🏽 naïve café",
    "a line\n  an indented line\n\n\ttabs and 1234567890",
]


def token_id(tokenizer: tokenizers.Tokenizer, token: str) -> int:
    """Return the id of a token that is there."""
    found = tokenizer.token_to_id(token)
    assert found is not None
    return int(found)


def byte_level() -> tokenizers.Tokenizer:
    """A GPT-2-like byte-level BPE tokenizer with ChatML control tokens and one plain added token."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=CONTROL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["<think> "])
    return tokenizer


def byte_fallback() -> tokenizers.Tokenizer:
    """A SentencePiece-like tokenizer as Llama 2 has it: metaspace, and bytes for unknown characters."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "h", "e", "l", "o", "w", "r", "d", "▁h", "▁w", "he", "ll", "or"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    merges = [("▁", "h"), ("▁", "w"), ("h", "e"), ("l", "l"), ("o", "r")]
    model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer
