"""Which profile, how many threads and how long a chunk suit this machine: a short self-benchmark, kept.

It runs when a pack is loaded for the first time on a machine, takes a few seconds, and its
result is kept beside the data. On a machine that is too busy to tell it gives up and keeps nothing. What it chooses never changes an answer within one profile: prompts
are cut where it makes no difference, and threads share out rows and columns, not sums.
"""

from __future__ import annotations

import hashlib
import logging
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from appliance.engines.cores import Cores
from appliance.engines.generation.kv_cache import KvCache
from appliance.engines.generation.model import CHUNK_TOKENS, DecoderModel
from appliance.packs.errors import PackError
from appliance.packs.manifest import Decoder, Manifest, Profile, ProfileName

logger = logging.getLogger(__name__)

CHUNKS = (128, 256)
PROMPT_TOKENS = 512
BATCH = 8
REPEATS = 3
DECODE_STEPS = 6
MAX_SECONDS = 10.0
# A longer chunk makes running streams wait longer, so it must be worth it.
LONGER_WORTH = 1.08
# Fewer threads win where cores are halves of one; on a box that was busy just now they only seem to.
FEWER_WORTH = 1.25
# Tokens of prompt for one of answer: what a profile is judged by, prompts being the larger part of the work.
PROMPT_SHARE = 8.0


class Tuning(msgspec.Struct, frozen=True, kw_only=True):
    """What a pack runs with."""

    profile: ProfileName
    threads: int
    chunk_tokens: int = CHUNK_TOKENS


class _Speed(msgspec.Struct, frozen=True):
    """Seconds for a token of prompt with the shorter and the longer chunk, and for one of BATCH rows."""

    short_chunk: float
    long_chunk: float
    decode: float

    @property
    def chunk_tokens(self) -> int:
        return CHUNKS[1] if self.long_chunk * LONGER_WORTH < self.short_chunk else CHUNKS[0]

    @property
    def cost(self) -> float:
        return PROMPT_SHARE * min(self.short_chunk, self.long_chunk) + self.decode


class _Clock:
    """Times work, as long as there is time."""

    def __init__(self, budget: float) -> None:
        self._end = time.perf_counter() + budget

    @property
    def is_over(self) -> bool:
        return time.perf_counter() > self._end

    def seconds(self, work: Callable[[], None]) -> float:
        """Return the median time of REPEATS runs, of fewer when the time is over."""
        times: list[float] = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
            if self.is_over:
                break
        return statistics.median(times)


def chosen_profile(decoder: Decoder, name: ProfileName) -> Profile:
    """Return the pack's profile of that name, "exact" when it has no other."""
    profile = decoder.profile(name) or decoder.profile("exact")
    if profile is None:
        raise PackError("The pack has no profile 'exact'.")
    return profile


def tuned(
    pack_dir: Path,
    manifest: Manifest,
    cores: Cores,
    wanted: Literal["exact", "throughput", "auto"],
    kept: Path | None,
) -> Tuning:
    """Return what ``manifest``'s pack runs with on this machine, as ``kept`` says or by measuring now.

    ``wanted`` is a profile, or "auto" for the faster of those that the pack has: its gates have
    passed all of them. With ``kept`` None nothing is measured. Raises PackError.
    """
    decoder = manifest.decoder
    if decoder is None:
        raise PackError(f"{manifest.name} is not a chat model pack.")
    names: list[ProfileName] = [name for name in ("exact", "throughput") if decoder.profile(name)]
    if wanted != "auto":
        if wanted not in names:
            logger.warning("%s has no profile %s; it runs as exact", manifest.name, wanted)
        names = [wanted if wanted in names else "exact"]
    if kept is None:
        return Tuning(profile=names[0], threads=cores.threads)
    key = _key(manifest, cores, names)
    found = _read(kept).get(key)
    if found is None:
        found = _measure(pack_dir, decoder, cores, names)
        if found is None:
            logger.warning(
                "%s: this machine is too busy to be measured; trying again at the next start", manifest.name
            )
            return Tuning(profile=names[0], threads=cores.threads)
        _write(kept, key, found)
        logger.info("%s: profile %s, chunks of %d tokens", manifest.name, found.profile, found.chunk_tokens)
    return found


def _measure(pack_dir: Path, decoder: Decoder, cores: Cores, names: list[ProfileName]) -> Tuning | None:
    """Return the best of all choices; None when that takes longer than MAX_SECONDS."""
    clock = _Clock(MAX_SECONDS)
    found: dict[float, Tuning] = {}
    for threads in sorted({cores.threads, max(1, cores.threads // 2)}, reverse=True):
        for name in names:
            speed = _speed(pack_dir, decoder, chosen_profile(decoder, name), cores, threads, clock)
            if clock.is_over:
                return None
            cost = speed.cost if threads == cores.threads else speed.cost * FEWER_WORTH
            found[cost] = Tuning(profile=name, threads=threads, chunk_tokens=speed.chunk_tokens)
    return found[min(found)]


def _speed(
    pack_dir: Path, decoder: Decoder, profile: Profile, cores: Cores, threads: int, clock: _Clock
) -> _Speed:
    cache = KvCache(
        layers=decoder.layers,
        kv_heads=decoder.kv_heads,
        head_dim=decoder.head_dim,
        rows=BATCH,
        context_length=PROMPT_TOKENS + DECODE_STEPS,
    )
    model = DecoderModel(pack_dir, decoder, profile, cache, cores, chunk_tokens=max(CHUNKS), threads=threads)
    ids = np.arange(PROMPT_TOKENS, dtype=np.int64) % decoder.vocab_size

    def prefill(chunk: int) -> None:
        for start in range(0, PROMPT_TOKENS, chunk):
            model.prefill(0, ids[start : start + chunk], start)

    def decode() -> None:
        for step in range(DECODE_STEPS):
            model.decode(0, [1] * BATCH, [PROMPT_TOKENS // 4 + step] * BATCH)

    prefill(max(CHUNKS))  # the first run lays out its memory
    return _Speed(
        clock.seconds(lambda: prefill(CHUNKS[0])) / PROMPT_TOKENS,
        clock.seconds(lambda: prefill(CHUNKS[1])) / PROMPT_TOKENS,
        clock.seconds(decode) / (DECODE_STEPS * BATCH),
    )


def _key(manifest: Manifest, cores: Cores, names: list[ProfileName]) -> str:
    """Return what a result holds for: the pack's files, the processor, the threads and the choice."""
    import onnxruntime

    parts = [
        *(file.sha256 for file in manifest.file),
        *names,
        str(cores.threads),
        str(onnxruntime.__version__),
        _processor(),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _processor() -> str:
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))
    return ""


def _read(path: Path) -> dict[str, Tuning]:
    """Return what is kept; what cannot be read is measured again."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Tuning])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError) as error:
        logger.warning("cannot read %s, measuring again: %s", path, error)
        return {}


def _write(path: Path, key: str, tuning: Tuning) -> None:
    content = msgspec.json.encode({**_read(path), key: tuning})
    partial = path.with_suffix(".partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:  # it costs seconds at the next start, nothing more
        logger.warning("cannot keep what was measured in %s: %s", path, error)
