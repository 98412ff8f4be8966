"""What a machine is tuned to is measured once, kept, and never a graph that computes something else."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from appliance.engines.cores import Cores
from appliance.engines.generation import tuning as tuning_module
from appliance.engines.generation.engine import GenerationEngine
from appliance.engines.generation.scheduling.model import DecoderModel
from appliance.engines.generation.tuning import CHUNKS, MOST_ATTEMPTS, Tuning, tuned
from appliance.packs.errors import PackError
from appliance.packs.manifest import Decoder, Manifest, Profile
from tests.engines.generation.conftest import answer, ask, opened


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "tuning.json"


class _Machine:
    """Stands in for the model: each call takes as long as told, on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, vocab_size: int) -> None:
        self.now = 0.0
        self.processor = 0.0
        self.share = 1.0
        # Seconds of a prefill run by graph and by tokens, and of a decode run by graph.
        self.prefill_seconds: dict[str, float] = {}
        self.long_chunk_gain = 1.0
        self.decode_seconds: dict[str, float] = {}
        self.few_threads_gain = 0.5
        self.unsound: set[str] = set()
        self.opened = 0
        self.vocab_size = vocab_size
        monkeypatch.setattr(tuning_module, "DecoderModel", self.open)
        clock = SimpleNamespace(perf_counter=lambda: self.now, process_time=lambda: self.processor)
        monkeypatch.setattr(tuning_module, "time", clock)

    def open(self, *args: Any, threads: int, **_: Any) -> _Model:
        self.opened += 1
        return _Model(self, args[0].name, threads)

    def work(self, seconds: float, threads: int) -> None:
        seconds = seconds if threads > 1 else seconds / self.few_threads_gain
        self.now += seconds
        self.processor += seconds * threads * self.share


class _Model:
    score_tokens = 64

    def __init__(self, machine: _Machine, graph: str, threads: int) -> None:
        self._machine, self._graph, self._threads = machine, graph, threads

    def prefill(self, row: int, ids: Any, start: int) -> None:
        seconds = self._machine.prefill_seconds.get(self._graph, 0.02)
        gain = self._machine.long_chunk_gain if ids.size > CHUNKS[0] else 1.0
        self._machine.work(seconds * ids.size / CHUNKS[0] / gain, self._threads)

    def decode(self, first_row: int, tokens: list[int], lengths: list[int]) -> None:
        self._machine.work(self._machine.decode_seconds.get(self._graph, 0.01), self._threads)

    def score(self, row: int, ids: Any, start: int) -> Any:
        logits = np.zeros((ids.size, self._machine.vocab_size), np.float32)
        logits[np.arange(ids.size), (ids + (self._graph in self._machine.unsound)) % 8] = 9.0
        return logits


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, decoder: Decoder) -> _Machine:
    return _Machine(monkeypatch, decoder.vocab_size)


def with_profiles(manifest: Manifest, *profiles: Profile) -> Manifest:
    assert manifest.decoder is not None
    decoder = msgspec.structs.replace(manifest.decoder, profiles=list(profiles))
    return msgspec.structs.replace(manifest, decoder=decoder)


FAST = Profile(name="throughput", graph="fast.onnx")
EXACT_WITH_ANOTHER = Profile(name="exact", graph="model.onnx", alternative="other.onnx")
BLOCKS = Tuning(profile="exact", graph="model.onnx", threads=2)


def test_without_a_file_nothing_is_measured(
    pack: Path, manifest: Manifest, cores: Cores, machine: _Machine
) -> None:
    both = with_profiles(manifest, FAST)
    assert tuned(pack, both, cores, "throughput", None) == Tuning(
        profile="throughput", graph="fast.onnx", threads=2
    )
    assert tuned(pack, both, cores, "auto", None) == BLOCKS
    assert machine.opened == 0


def test_what_was_measured_is_kept_for_this_pack_and_choice(
    pack: Path, manifest: Manifest, cores: Cores, machine: _Machine, kept: Path
) -> None:
    both = with_profiles(manifest, FAST)
    first = tuned(pack, both, cores, "exact", kept)
    opened_once = machine.opened
    assert tuned(pack, both, cores, "exact", kept) == first
    assert machine.opened == opened_once > 0
    tuned(pack, both, cores, "auto", kept)
    tuned(pack, both, Cores(1), "exact", kept)
    assert len(msgspec.json.decode(kept.read_bytes())) == 3
    changed = [msgspec.structs.replace(file, sha256="0" * 64) for file in both.file]
    tuned(pack, msgspec.structs.replace(both, file=changed), cores, "exact", kept)
    assert len(msgspec.json.decode(kept.read_bytes())) == 4


def test_auto_takes_the_faster_profile_and_a_name_takes_that_one(
    pack: Path, manifest: Manifest, cores: Cores, machine: _Machine, kept: Path
) -> None:
    both = with_profiles(manifest, FAST)
    machine.prefill_seconds = {"fast.onnx": 0.01}
    assert tuned(pack, both, cores, "auto", kept).profile == "throughput"
    assert tuned(pack, both, cores, "exact", kept).profile == "exact"
    machine.prefill_seconds = {"model.onnx": 0.005, "fast.onnx": 0.01}
    kept.unlink()
    assert tuned(pack, both, cores, "auto", kept).profile == "exact"


def test_a_profile_that_the_pack_lacks_is_the_exact_one(
    pack: Path, manifest: Manifest, cores: Cores, machine: _Machine, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert tuned(pack, with_profiles(manifest), cores, "throughput", None).profile == "exact"
    assert "has no profile throughput" in caplog.text


@pytest.mark.parametrize(("gain", "chunk"), [(1.0, 128), (1.05, 128), (1.2, 256)])
def test_a_longer_chunk_must_be_worth_it(
    pack: Path, manifest: Manifest, cores: Cores, machine: _Machine, kept: Path, gain: float, chunk: int
) -> None:
    machine.long_chunk_gain = gain
    assert tuned(pack, manifest, cores, "exact", kept).chunk_tokens == chunk


@pytest.mark.parametrize(("gain", "threads"), [(0.5, 2), (1.1, 2), (1.5, 1)])
def test_fewer_threads_must_be_worth_it(
    pack: Path, manifest: Manifest, cores: Cores, machine: _Machine, kept: Path, gain: float, threads: int
) -> None:
    machine.few_threads_gain = gain
    assert tuned(pack, with_profiles(manifest), cores, "exact", kept).threads == threads


@pytest.mark.parametrize(("seconds", "graph"), [(0.03, "model.onnx"), (0.01, "other.onnx")])
def test_of_two_graphs_of_a_profile_the_faster_runs(
    pack: Path, manifest: Manifest, cores: Cores, machine: _Machine, kept: Path, seconds: float, graph: str
) -> None:
    machine.prefill_seconds = {"other.onnx": seconds}
    found = tuned(pack, with_profiles(manifest, EXACT_WITH_ANOTHER), cores, "exact", kept)
    assert (found.profile, found.graph) == ("exact", graph)


def test_a_graph_of_two_profiles_is_measured_once(
    pack: Path, manifest: Manifest, cores: Cores, machine: _Machine, kept: Path
) -> None:
    shared = Profile(name="throughput", graph="other.onnx")
    tuned(pack, with_profiles(manifest, EXACT_WITH_ANOTHER, shared), cores, "auto", kept)
    # Two graphs with two numbers of threads, and the pack's own to compare with.
    assert machine.opened == 5


def test_a_graph_that_computes_something_else_is_not_taken(
    pack: Path,
    manifest: Manifest,
    cores: Cores,
    machine: _Machine,
    kept: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    machine.prefill_seconds = {"other.onnx": 0.001, "fast.onnx": 0.001}
    machine.unsound = {"other.onnx", "fast.onnx"}
    with caplog.at_level(logging.WARNING):
        found = tuned(pack, with_profiles(manifest, EXACT_WITH_ANOTHER, FAST), cores, "auto", kept)
    assert (found.profile, found.graph) == ("exact", "model.onnx")
    assert "other.onnx does not compute the same" in caplog.text


@pytest.mark.parametrize("trouble", ["slow", "shared"])
def test_a_machine_that_is_too_busy_is_measured_at_the_next_starts_but_not_at_each(
    pack: Path, manifest: Manifest, cores: Cores, machine: _Machine, kept: Path, trouble: str
) -> None:
    if trouble == "slow":
        machine.prefill_seconds = {"model.onnx": 5.0}
    else:
        machine.share = 0.5
    opened = []
    for _ in range(MOST_ATTEMPTS + 2):
        found = tuned(pack, with_profiles(manifest), cores, "exact", kept)
        assert (found.graph, found.threads, found.chunk_tokens) == ("model.onnx", 2, 128)
        opened.append(machine.opened)
    assert opened[0] < opened[1] < opened[MOST_ATTEMPTS - 1] == opened[-1]


def test_a_machine_that_was_too_busy_at_first_is_measured_once_it_is_not(
    pack: Path, manifest: Manifest, cores: Cores, machine: _Machine, kept: Path
) -> None:
    machine.share, machine.long_chunk_gain = 0.5, 1.2
    assert tuned(pack, with_profiles(manifest), cores, "exact", kept).chunk_tokens == 128
    machine.share = 1.0
    found = tuned(pack, with_profiles(manifest), cores, "exact", kept)
    assert (found.chunk_tokens, found.attempts) == (256, 0)
    machine.share = 0.5
    assert tuned(pack, with_profiles(manifest), cores, "exact", kept) == found


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": {"threads": "x"}}', b"\xff", b'{"\xff": {}}'])
def test_a_file_that_cannot_be_read_is_measured_anew(
    pack: Path, manifest: Manifest, cores: Cores, machine: _Machine, kept: Path, content: bytes
) -> None:
    kept.write_bytes(content)
    tuned(pack, with_profiles(manifest), cores, "exact", kept)
    assert machine.opened
    assert len(msgspec.json.decode(kept.read_bytes(), type=dict[str, Tuning])) == 1


def test_a_place_that_cannot_be_written_costs_nothing_but_time(
    pack: Path, manifest: Manifest, cores: Cores, machine: _Machine, tmp_path: Path
) -> None:
    assert (
        tuned(pack, with_profiles(manifest), cores, "exact", tmp_path / "none" / "tuning.json").threads == 2
    )
    assert not (tmp_path / "none").exists()


def test_a_pack_that_is_no_chat_model_is_refused(pack: Path, manifest: Manifest, cores: Cores) -> None:
    with pytest.raises(PackError):
        tuned(pack, msgspec.structs.replace(manifest, decoder=None), cores, "exact", None)


async def test_the_real_model_is_measured_and_runs_as_it_says(
    pack: Path,
    manifest: Manifest,
    cores: Cores,
    engine: GenerationEngine,
    kept: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a machine that others use as well, the time is what it is: only what does not depend on it is looked at."""
    monkeypatch.setattr(tuning_module, "LEAST_SHARE", 0.0)
    monkeypatch.setattr(tuning_module, "MAX_SECONDS", 120.0)
    monkeypatch.setattr(tuning_module, "REPEATS", 1)
    monkeypatch.setattr(tuning_module, "PROMPT_TOKENS", 256)
    chunks: list[int] = []
    prefill = DecoderModel.prefill

    def noted(self: DecoderModel, row: int, ids: Any, *args: Any, **options: Any) -> Any:
        chunks.append(ids.size)
        return prefill(self, row, ids, *args, **options)

    plain = with_profiles(manifest)
    with opened(pack, plain, cores, context_length=1024, tuning_file=kept) as other:
        (found,) = msgspec.json.decode(kept.read_bytes(), type=dict[str, Tuning]).values()
        assert found.chunk_tokens in CHUNKS
        assert found.threads in (1, 2)
        assert other.profile == found.profile == "exact"
        monkeypatch.setattr(DecoderModel, "prefill", noted)
        prompt = list(range(1000, 1300))
        asked = await answer(ask(other, prompt, 3, logprobs=1))
        assert max(chunks) == found.chunk_tokens
    assert asked == await answer(ask(engine, prompt, 3, logprobs=1))
