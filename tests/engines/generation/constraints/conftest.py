"""What the tests of constraints share: a compiler for a model's tokens, and random walks under what it compiles."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers

from appliance.engines.generation.constraints.compiler import ConstraintCompiler
from appliance.packs.manifest import Decoder
from tests.engines.generation.constraints.samples import Walker


@pytest.fixture(scope="package")
def compiler(pack: Path, decoder: Decoder) -> ConstraintCompiler:
    compiler = ConstraintCompiler(pack / decoder.tokenizer, decoder.eos_token_ids, decoder.vocab_size)
    compiler.warm()
    return compiler


@pytest.fixture(scope="package")
def walker(pack: Path, decoder: Decoder) -> Walker:
    tokenizer = tokenizers.Tokenizer.from_file(str(pack / decoder.tokenizer))
    return Walker(tokenizer, list(decoder.eos_token_ids))
