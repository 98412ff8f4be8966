"""Which profile, graph, threads and chunks suit this machine: a short self-benchmark, kept.

It runs when a pack is loaded for the first time on a machine, takes a few seconds, and its result
is kept beside the data. On a machine that is too busy to tell it gives up, tries again at the next
starts, and stays with the pack's own graph after the last of them. A
graph is taken only when it computes here what the pack's own graph does: on processors whose 8-bit
products saturate, some do not.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from appliance.engines.cores import Cores
from appliance.engines.generation.scheduling.kv_cache import KvCache
from appliance.engines.generation.scheduling.model import CHUNK_TOKENS, DecoderModel
from appliance.packs.errors import PackError
from appliance.packs.manifest import Decoder, Manifest, ProfileName

logger = logging.getLogger(__name__)

CHUNKS = (128, 256)
PROMPT_TOKENS = 256
BATCH = 8
REPEATS = 2
DECODE_STEPS = 6
MAX_SECONDS = 20.0
# A machine that is always busy, or too slow for MAX_SECONDS, is not kept from starting by it for good.
MOST_ATTEMPTS = 3
# The share of its threads' time that this process must get for its times to mean anything.
LEAST_SHARE = 0.85
# A longer chunk makes running streams wait longer, so it must be worth it.
LONGER_WORTH = 1.08
# Fewer threads win where cores are halves of one; on a box that was busy just now they only seem to.
FEWER_WORTH = 1.25
# Tokens of prompt for one of answer: what a choice is judged by, prompts being the larger part of the work.
PROMPT_SHARE = 8.0
# Mean divergence in nats between two graphs of one pack over the probe. Graphs that pass their gates
# stay below 0.07 (measured); saturated products are off by far more.
PROBE_LIMIT = 0.25
PROBE_TOKENS = 16
PROBE_STEP = 7919  # a prime, so that the probe's tokens come from all over the vocabulary


class Tuning(msgspec.Struct, frozen=True, kw_only=True):
    """What a pack runs with. ``graph`` is one of the profile's.

    ``attempts`` counts the measurements that came to nothing so far; 0 when this was measured.
    """

    profile: ProfileName
    graph: str
    threads: int
    chunk_tokens: int = CHUNK_TOKENS
    attempts: int = 0


def tuned(
    pack_dir: Path,
    manifest: Manifest,
    cores: Cores,
    wanted: Literal["exact", "throughput", "auto"],
    kept: Path | None,
) -> Tuning:
    """Return what ``manifest``'s pack runs with on this machine, as ``kept`` says or by measuring now.

    ``wanted`` is a profile, or "auto" for the faster of those that the pack has: each has passed its
    gate. With ``kept`` None nothing is measured, and the profile runs by its first graph. Raises PackError.
    """
    decoder = manifest.decoder
    if decoder is None:
        raise PackError(f"{manifest.name} is not a chat model pack.")
    names: list[ProfileName] = [name for name in ("exact", "throughput") if decoder.profile(name)]
    if wanted != "auto":
        if wanted not in names:
            logger.warning("%s has no profile %s; it runs as exact", manifest.name, wanted)
        names = [wanted if wanted in names else "exact"]
    choices = [
        Tuning(profile=profile.name, graph=graph, threads=cores.threads)
        for profile in map(decoder.profile, names)
        if profile is not None
        for graph in (profile.graph, profile.alternative)
        if graph is not None
    ]
    default = choices[0]
    if kept is None:
        return default
    key = _key(manifest, cores, choices)
    found = _read(kept).get(key)
    attempts = 0 if found is None else found.attempts
    if found is None or 0 < attempts < MOST_ATTEMPTS:
        found = _Bench(pack_dir, decoder, cores).best(choices)
        _give_back()
        if found is None:
            attempts += 1
            further = (
                "trying again at the next start"
                if attempts < MOST_ATTEMPTS
                else f"it runs as built; without {kept} it is measured again"
            )
            logger.warning("%s: this machine is too busy to be measured; %s", manifest.name, further)
            _write(kept, key, msgspec.structs.replace(default, attempts=attempts))
            return default
        _write(kept, key, found)
        logger.info("%s was measured and runs with %s", manifest.name, found)
    return found


class _Speed(msgspec.Struct, frozen=True):
    """Seconds for a token of prompt, with the better chunk, and for one of BATCH rows."""

    chunk_tokens: int
    prefill: float
    decode: float

    @property
    def cost(self) -> float:
        return PROMPT_SHARE * self.prefill + self.decode


class _Bench:
    """Measures the graphs of one pack, as long as MAX_SECONDS last."""

    def __init__(self, pack_dir: Path, decoder: Decoder, cores: Cores) -> None:
        self._pack_dir = pack_dir
        self._decoder = decoder
        self._cores = cores
        self._end = time.perf_counter() + MAX_SECONDS
        self._cache = KvCache(
            layers=decoder.layers,
            kv_heads=decoder.kv_heads,
            head_dim=decoder.head_dim,
            rows=BATCH,
            context_length=PROMPT_TOKENS + DECODE_STEPS,
        )
        self._expected: NDArray[np.float64] | None = None
        self._wanted_seconds = self._processor_seconds = 0.0

    def is_sensible(self) -> bool:
        """Return whether there is time left, and nobody else had the cores while this measured.

        (The threads of a run never sleep, so it gets all of their time on an idle machine.)
        """
        in_time = time.perf_counter() < self._end
        return in_time and self._processor_seconds >= LEAST_SHARE * self._wanted_seconds

    def best(self, choices: list[Tuning]) -> Tuning | None:
        """Return the best choice; None when the time was too short, or others had the cores."""
        measured = {choice.graph: self._speed(choice.graph, self._cores.threads) for choice in choices}
        fitted = [
            (speed.cost, _fitted(choice, speed, self._cores.threads))
            for choice in choices
            if (speed := measured[choice.graph]) is not None
        ]
        if not fitted or not self.is_sensible():
            return None
        cost, best = min(fitted, key=lambda each: each[0])
        fewer = self._cores.threads // 2
        if (
            fewer
            and (speed := self._speed(best.graph, fewer)) is not None
            and speed.cost * FEWER_WORTH < cost
        ):
            best = _fitted(best, speed, fewer)
        return best if self.is_sensible() else None

    def _speed(self, graph: str, threads: int) -> _Speed | None:
        """Time one graph; None when it does not compute what it should, or there is no time."""
        _give_back()
        if not self.is_sensible():
            return None
        if self._expected is None and graph != self._decoder.graph:
            self._expected = self._probe(self._open(self._decoder.graph, 0))
            _give_back()
        model = self._open(graph, threads)
        if graph != self._decoder.graph and not self._is_sound(model):
            logger.warning("the graph %s does not compute the same on this processor", graph)
            return None
        ids = np.arange(PROMPT_TOKENS, dtype=np.int64) % self._decoder.vocab_size

        def prefill(chunk: int) -> None:
            for start in range(0, PROMPT_TOKENS, chunk):
                model.prefill(0, ids[start : start + chunk], start)

        def decode() -> None:
            for step in range(DECODE_STEPS):
                model.decode(0, [1] * BATCH, [PROMPT_TOKENS // 4 + step] * BATCH)

        prefill(max(CHUNKS))  # the first run lays out its memory
        short = self._seconds(lambda: prefill(CHUNKS[0]), threads)
        if not self.is_sensible():
            return None
        long = self._seconds(lambda: prefill(CHUNKS[1]), threads)
        chunk = CHUNKS[1] if long * LONGER_WORTH < short else CHUNKS[0]
        return _Speed(
            chunk,
            (long if chunk == CHUNKS[1] else short) / PROMPT_TOKENS,
            self._seconds(decode, threads) / (DECODE_STEPS * BATCH),
        )

    def _is_sound(self, model: DecoderModel) -> bool:
        """Return whether a graph predicts about what the pack's own does."""
        expected = self._expected
        if expected is None:
            return False
        divergence = (np.exp(expected) * (expected - self._probe(model))).sum(axis=1).mean()
        return bool(divergence < PROBE_LIMIT)

    def _probe(self, model: DecoderModel) -> NDArray[np.float64]:
        """Return the log probabilities [PROBE_TOKENS, vocab_size] that a graph gives to the probe."""
        ids = np.arange(PROBE_TOKENS, dtype=np.int64) * PROBE_STEP % self._decoder.vocab_size
        pieces = [
            model.score(0, ids[start : start + model.score_tokens], start).astype(np.float64)
            for start in range(0, PROBE_TOKENS, model.score_tokens)
        ]
        logits = np.concatenate(pieces)
        logits -= logits.max(axis=1, keepdims=True)
        return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))

    def _open(self, graph: str, threads: int) -> DecoderModel:
        return DecoderModel(
            self._pack_dir / graph,
            self._decoder,
            self._cache,
            self._cores,
            chunk_tokens=max(CHUNKS),
            threads=threads,
        )

    def _seconds(self, work: Callable[[], None], threads: int) -> float:
        """Return the least time of REPEATS runs, of fewer when the time is over."""
        times: list[float] = []
        processor = time.process_time()
        while len(times) < REPEATS and not (times and time.perf_counter() > self._end):
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
        self._processor_seconds += time.process_time() - processor
        self._wanted_seconds += threads * sum(times)
        return min(times)


def _fitted(choice: Tuning, speed: _Speed, threads: int) -> Tuning:
    return msgspec.structs.replace(choice, threads=threads, chunk_tokens=speed.chunk_tokens)


def _give_back() -> None:
    """Return the memory of closed sessions to the system: the allocator would keep it for the next one."""
    gc.collect()
    with suppress(AttributeError, OSError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _key(manifest: Manifest, cores: Cores, choices: list[Tuning]) -> str:
    """Return what a result holds for: the pack's files, the processor, the threads and the choice."""
    import onnxruntime

    parts = [
        *(file.sha256 for file in manifest.file),
        *(f"{choice.profile} {choice.graph}" for choice in choices),
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
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
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
