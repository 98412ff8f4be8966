"""One chat model: its tokenizer, its chat template and its scheduler, opened from a pack."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from appliance.engines.cores import Cores
from appliance.engines.errors import EngineError, InputRefusedError
from appliance.engines.generation.chat_template import ChatTemplate
from appliance.engines.generation.contract import GenerationRequest
from appliance.engines.generation.control_tokens import choose_marker
from appliance.engines.generation.delivery import TokenStream
from appliance.engines.generation.kv_cache import KvCache, bytes_per_token
from appliance.engines.generation.model import DecoderModel
from appliance.engines.generation.rows import RowTable
from appliance.engines.generation.scheduler import BatchScheduler
from appliance.engines.generation.tokenizer import Tokenizer
from appliance.packs.errors import PackError
from appliance.packs.manifest import Decoder, Manifest

logger = logging.getLogger(__name__)

# Aggregate speed still grows from 8 to 16 rows; beyond that each stream only gets slower.
MAX_ROWS = 16
# A chat model with less context than this is of no use to anybody.
LEAST_CONTEXT_TOKENS = 256
# Tokenising takes a core for as long as it lasts; more threads would only take turns.
TEXT_THREADS = 2

T = TypeVar("T")


class GenerationEngine:
    """A loaded chat model. Create it off the event loop (it reads the weights); ``close`` it there too."""

    def __init__(
        self, pack_dir: Path, manifest: Manifest, cores: Cores, *, kv_cache_bytes: int, max_queue: int
    ) -> None:
        """Load the pack in ``pack_dir``.

        ``kv_cache_bytes`` bounds the memory of all sequences together; a budget below one whole
        context shortens ``context_length``. Raises PackError when the pack is not a decoder that
        this engine can run, EngineError when the budget is too small for any use.
        """
        decoder = manifest.decoder
        if decoder is None or manifest.context_length < 1:
            raise PackError(f"{manifest.name} is not a chat model pack.")
        budget_tokens = _budget_tokens(decoder, kv_cache_bytes)
        self.context_length = min(manifest.context_length, budget_tokens)
        if self.context_length < manifest.context_length:
            logger.warning(
                "%s: the KV cache of %d bytes shortens the context from %d to %d tokens",
                manifest.name,
                kv_cache_bytes,
                manifest.context_length,
                self.context_length,
            )
        self.vocab_size = decoder.vocab_size
        self.tokenizer = Tokenizer(pack_dir / decoder.tokenizer, self.context_length)
        self._template = _read_template(pack_dir, decoder)
        cache = KvCache(
            layers=decoder.layers,
            kv_heads=decoder.kv_heads,
            head_dim=decoder.head_dim,
            rows=MAX_ROWS,
            context_length=self.context_length,
        )
        self._scheduler = BatchScheduler(
            DecoderModel(pack_dir / decoder.graph, decoder, cache, cores),
            RowTable(cache, context_length=self.context_length, budget_tokens=budget_tokens),
            self.tokenizer,
            eos_token_ids=frozenset(decoder.eos_token_ids),
            context_length=self.context_length,
            vocab_size=self.vocab_size,
            max_queue=max_queue,
        )
        self._text_threads = ThreadPoolExecutor(TEXT_THREADS, thread_name_prefix="tokenizer")

    async def chat_prompt(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Render a conversation with the pack's template and return its token ids.

        ``messages`` are plain JSON values as the template wants them (``role``, ``content`` …); control
        tokens spelled in them stay text. Raises InputRefusedError with the template's message, or
        when the text is far too long (code ``context_length_exceeded``); a prompt that is merely
        somewhat longer than the context is returned.
        """
        return await self._in_thread(lambda: self._chat_prompt(messages, tools, add_generation_prompt))

    async def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Return the token ids of ``text``. Raises InputRefusedError when it is far too long."""
        return await self._in_thread(lambda: self.tokenizer.encode(text, add_special_tokens))

    def decode(self, ids: list[int]) -> str:
        """Return the text of ``ids`` without control tokens."""
        return self.tokenizer.decode(ids)

    def submit(self, request: GenerationRequest) -> TokenStream:
        """Queue ``request`` and return its stream (a ``Generation``).

        Raises InputRefusedError when it can never run, OverloadedError when the queue is full.
        """
        return self._scheduler.submit(request)

    @property
    def queue_depth(self) -> int:
        """Requests that wait for their turn."""
        return self._scheduler.queue_depth

    @property
    def running_rows(self) -> int:
        """Requests that are being worked on."""
        return self._scheduler.running_rows

    def close(self) -> None:
        """End the engine: unfinished requests raise EngineError, and the memory is free afterwards."""
        self._scheduler.close()
        self._text_threads.shutdown(cancel_futures=True)

    def _chat_prompt(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, add_generation_prompt: bool
    ) -> list[int]:
        if self._template is None:
            raise InputRefusedError("This model has no chat template; use completions.", param="model")
        marker = choose_marker([messages, tools])
        controls = self.tokenizer.control_tokens
        rendered = self._template.render(
            controls.protect(messages, marker),
            tools=controls.protect(tools, marker),
            add_generation_prompt=add_generation_prompt,
            max_characters=self.tokenizer.max_characters,
        )
        return self.tokenizer.encode_rendered(rendered, marker)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._text_threads, work)


def _budget_tokens(decoder: Decoder, kv_cache_bytes: int) -> int:
    token_bytes = bytes_per_token(layers=decoder.layers, kv_heads=decoder.kv_heads, head_dim=decoder.head_dim)
    tokens = kv_cache_bytes // token_bytes
    if tokens < LEAST_CONTEXT_TOKENS:
        raise EngineError(
            f"The KV cache needs at least {LEAST_CONTEXT_TOKENS * token_bytes} bytes for this model"
            f" ({token_bytes} bytes a token), not {kv_cache_bytes}."
        )
    return tokens


def _read_template(pack_dir: Path, decoder: Decoder) -> ChatTemplate | None:
    if decoder.chat_template is None:
        return None
    try:
        source = (pack_dir / decoder.chat_template).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PackError(f"Cannot read the chat template {decoder.chat_template}: {error}") from error
    return ChatTemplate(source, {"bos_token": decoder.bos_token, "eos_token": decoder.eos_token})
