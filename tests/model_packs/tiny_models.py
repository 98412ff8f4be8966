"""Make tiny random-weight Hugging Face models. Run by the export environment: ``python tiny_models.py KIND FOLDER``.

Only torch, transformers and tokenizers are imported, so that nothing of the project has to be there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

TEXT = [
    "The ferry leaves the harbour at seven and returns before dusk.",
    "How long is a piece of string, and who is to say?",
]


def main(kind: str, folder: Path) -> None:
    """Write the model of ``kind`` ("llama", "bert" or "cross-encoder") into ``folder``."""
    import torch
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        BertModel,
        LlamaConfig,
        LlamaForCausalLM,
    )

    torch.manual_seed(7)
    tokenizer = byte_tokenizer()
    size = tokenizer.get_vocab_size()
    bert = BertConfig(
        vocab_size=size, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=512, num_labels=1,
    )  # fmt: skip
    if kind == "llama":
        config = LlamaConfig(
            vocab_size=size, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=128, max_position_embeddings=256,
            rope_theta=500_000.0, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
            initializer_range=0.2,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
    else:
        model = BertModel(bert) if kind == "bert" else BertForSequenceClassification(bert)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    if kind == "llama":
        # As transformers 5 saves it: the rotary base in rope_parameters only.
        path = folder / "config.json"
        saved = json.loads(path.read_text())
        saved["rope_parameters"] = {"rope_type": "default", "rope_theta": saved.pop("rope_theta")}
        path.write_text(json.dumps(saved))


def byte_tokenizer() -> Tokenizer:
    """Return a byte-level tokenizer with the special tokens of both families."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["[PAD]", "[CLS]", "[SEP]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return tokenizer


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
