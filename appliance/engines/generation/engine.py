"""One chat model: its tokenizer, its chat template and its scheduler, opened from a pack."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from appliance.engines.cores import Cores
from appliance.engines.errors import EngineError, InputRefusedError
from appliance.engines.generation.constraints.compiler import ConstraintCompiler, ConstraintSpec
from appliance.engines.generation.contract import (
    Beams,
    BeamSearch,
    Constraint,
    Generation,
    GenerationRequest,
    Scheduler,
)
from appliance.engines.generation.scheduling.kv_cache import KvCache, bytes_per_token
from appliance.engines.generation.scheduling.model import DECODE_ROWS, DecoderModel
from appliance.engines.generation.scheduling.rows import RowTable
from appliance.engines.generation.scheduling.scheduler import BatchScheduler
from appliance.engines.generation.scheduling.sequence import Vocabulary
from appliance.engines.generation.text.chat_prompt import Conversation, chat_prompt
from appliance.engines.generation.text.chat_template import ChatTemplate
from appliance.engines.generation.text.tokenizer import Tokenizer
from appliance.engines.generation.tools.formats import tool_format
from appliance.engines.generation.tuning import tuned
from appliance.packs.errors import PackError
from appliance.packs.manifest import Decoder, Manifest, ProfileName

logger = logging.getLogger(__name__)

# Rows cost address space only. Those beyond one decode call are for cached prompts and wide beam searches.
CACHE_ROWS = 192
# A chat model with less context than this is of no use to anybody.
LEAST_CONTEXT_TOKENS = 256
# Tokenising takes a core for as long as it lasts; more threads would only take turns.
TEXT_THREADS = 2

T = TypeVar("T")


class GenerationOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator may set of an engine.

    ``kv_cache_bytes`` bounds the memory of all sequences and cached prompts together,
    ``prefix_cache_bytes`` that of cached prompts, ``max_queue`` the requests that may wait.
    ``profile`` is one of the pack's, or "auto" for the fastest. ``tuning_file`` keeps what the
    self-benchmark found on this machine; None measures nothing.
    """

    kv_cache_bytes: int = 2 << 30
    prefix_cache_bytes: int = 256 << 20
    max_queue: int = 256
    profile: Literal["exact", "throughput", "auto"] = "exact"
    tuning_file: Path | None = None


class GenerationEngine:
    """A loaded chat model. Create it off the event loop (it reads the weights); ``close`` it there too."""

    def __init__(self, pack_dir: Path, manifest: Manifest, cores: Cores, options: GenerationOptions) -> None:
        """Load the pack in ``pack_dir``.

        A KV cache below one whole context shortens ``context_length``. Raises PackError when the
        pack is not a decoder that this engine can run, EngineError when the cache is too small for
        any use.
        """
        decoder = manifest.decoder
        if decoder is None or manifest.context_length < 1:
            raise PackError(f"{manifest.name} is not a chat model pack.")
        budget_tokens = _budget_tokens(decoder, options.kv_cache_bytes)
        self.context_length = min(manifest.context_length, budget_tokens)
        if self.context_length < manifest.context_length:
            logger.warning(
                "%s: the KV cache of %d bytes shortens the context from %d to %d tokens",
                manifest.name,
                options.kv_cache_bytes,
                manifest.context_length,
                self.context_length,
            )
        self.vocab_size = decoder.vocab_size
        self.eos_token_ids = frozenset(decoder.eos_token_ids)
        self.bos_token, self.eos_token = decoder.bos_token, decoder.eos_token
        self.tool_format = tool_format(decoder.tool_format)
        self.tokenizer = Tokenizer(pack_dir / decoder.tokenizer, self.context_length)
        self.template_text = _read_template(pack_dir, decoder)
        self._template = None if self.template_text is None else _compiled(self.template_text, decoder)
        self._constraints = ConstraintCompiler(
            pack_dir / decoder.tokenizer, decoder.eos_token_ids, self.vocab_size
        )
        tuning = tuned(pack_dir, manifest, cores, options.profile, options.tuning_file)
        self.profile: ProfileName = tuning.profile
        # What its numbers depend on: two graphs of one profile do not give the same bits.
        self.variant = f"{tuning.profile} {tuning.graph}"
        cache = KvCache(
            layers=decoder.layers,
            kv_heads=decoder.kv_heads,
            head_dim=decoder.head_dim,
            rows=CACHE_ROWS,
            context_length=self.context_length,
        )
        token_bytes = _token_bytes(decoder)
        self._rows = RowTable(
            cache,
            width=DECODE_ROWS,
            context_length=self.context_length,
            budget_tokens=budget_tokens,
            cached_tokens=options.prefix_cache_bytes // token_bytes,
        )
        self._token_bytes = token_bytes
        self._scheduler: Scheduler = BatchScheduler(
            DecoderModel(
                pack_dir / tuning.graph,
                decoder,
                cache,
                cores,
                chunk_tokens=tuning.chunk_tokens,
                threads=tuning.threads,
            ),
            self._rows,
            cache,
            Vocabulary(self.tokenizer, self.eos_token_ids, self.vocab_size),
            context_length=self.context_length,
            max_queue=options.max_queue,
        )
        self._text_threads = ThreadPoolExecutor(TEXT_THREADS, thread_name_prefix="tokenizer")
        # Seconds of work that the first constraint would otherwise wait for.
        self._text_threads.submit(self._constraints.warm)

    async def chat_prompt(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        add_special_tokens: bool = False,
        documents: list[Any] | None = None,
        template_kwargs: dict[str, Any] | None = None,
    ) -> list[int]:
        """Render a conversation with the pack's template and return its token ids.

        ``messages`` are plain JSON values as the template wants them (``role``, ``content`` …); control
        tokens spelled in them stay text. ``continue_final_message`` leaves the last message open.
        Raises InputRefusedError with the template's message, or when the text is far too long (code
        ``context_length_exceeded``); a prompt that is merely somewhat longer than the context is returned.
        """
        template = self._template
        if template is None:
            raise InputRefusedError("This model has no chat template; use completions.", param="model")
        conversation = Conversation(
            messages=messages,
            tools=tools,
            documents=documents,
            variables=template_kwargs or {},
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        return await self._in_thread(
            lambda: chat_prompt(template, self.tokenizer, conversation, add_special_tokens=add_special_tokens)
        )

    async def encode(self, text: str, add_special_tokens: bool, *, literal: bool = False) -> list[int]:
        """Return the token ids of ``text``; ``literal`` takes control tokens spelled in it for text.

        Raises InputRefusedError when it is far too long.
        """
        return await self._in_thread(lambda: self.tokenizer.encode(text, add_special_tokens, literal=literal))

    async def constraint(self, spec: ConstraintSpec) -> Constraint:
        """Compile a constraint. Raises InputRefusedError for what is invalid, unsatisfiable or too complex."""
        return await self._in_thread(lambda: self._constraints.compile(spec))

    def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of ``ids``, without control tokens unless told otherwise."""
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def token_text(self, token_id: int) -> str:
        """Return the text of one token alone; an unfinished character is U+FFFD."""
        return self.tokenizer.token_bytes.shown(token_id).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one token; those of its name for a control token."""
        return self.tokenizer.token_bytes.shown(token_id)

    def is_special(self, token_id: int) -> bool:
        """Return whether a token is a control token."""
        return self.tokenizer.token_bytes.is_special(token_id)

    def added_token_id(self, text: str) -> int | None:
        """Return the id of the token that ``text`` as a whole is in the vocabulary's added tokens."""
        return self.tokenizer.added_token_id(text)

    def submit(self, request: GenerationRequest) -> Generation:
        """Queue ``request`` and return its stream. Raises as ``submit_all`` does."""
        return self.submit_all([request])[0]

    def submit_all(self, requests: list[GenerationRequest]) -> Sequence[Generation]:
        """Queue requests that belong together and return their streams.

        Raises InputRefusedError when one can never run, OverloadedError when the queue is full.
        """
        return self._scheduler.submit(requests)

    def search(self, request: GenerationRequest, beams: Beams) -> BeamSearch:
        """Queue a beam search. Raises as ``submit_all`` does."""
        return self._scheduler.search(request, beams)

    @property
    def alive(self) -> bool:
        """Whether the thread that does the work is there."""
        return self._scheduler.alive

    @property
    def queue_depth(self) -> int:
        """Requests that wait for their turn."""
        return self._scheduler.queue_depth

    @property
    def running_rows(self) -> int:
        """Sequences that are being worked on."""
        return self._scheduler.running_rows

    @property
    def kv_cache_bytes(self) -> int:
        """Bytes of keys and values in memory: of running sequences and of cached prompts."""
        return self._rows.held_tokens * self._token_bytes

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts so far."""
        return self._rows.prompt_tokens

    @property
    def reused_prompt_tokens(self) -> int:
        """How many of them were found in the cache and not computed again."""
        return self._rows.reused_tokens

    def close(self) -> None:
        """End the engine: unfinished requests raise EngineError, and the memory is free afterwards."""
        self._scheduler.close()
        self._text_threads.shutdown(cancel_futures=True)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._text_threads, work)


def _token_bytes(decoder: Decoder) -> int:
    return bytes_per_token(layers=decoder.layers, kv_heads=decoder.kv_heads, head_dim=decoder.head_dim)


def _budget_tokens(decoder: Decoder, kv_cache_bytes: int) -> int:
    token_bytes = _token_bytes(decoder)
    tokens = kv_cache_bytes // token_bytes
    if tokens < LEAST_CONTEXT_TOKENS:
        raise EngineError(
            f"The KV cache needs at least {LEAST_CONTEXT_TOKENS * token_bytes} bytes for this model"
            f" ({token_bytes} bytes a token), not {kv_cache_bytes}."
        )
    return tokens


def _read_template(pack_dir: Path, decoder: Decoder) -> str | None:
    if decoder.chat_template is None:
        return None
    try:
        return (pack_dir / decoder.chat_template).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PackError(f"Cannot read the chat template {decoder.chat_template}: {error}") from error


def _compiled(source: str, decoder: Decoder) -> ChatTemplate:
    return ChatTemplate(source, {"bos_token": decoder.bos_token, "eos_token": decoder.eos_token})
