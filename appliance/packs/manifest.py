"""``pack.toml``: what a model pack is, in types.

A pack is a directory with a ``pack.toml`` and the files it lists, nothing else. The archive
``NAME.tar.zst`` holds the same files, ``pack.toml`` first.
"""

from __future__ import annotations

import tomllib
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import msgspec

from appliance.packs.errors import PackError

MANIFEST_NAME = "pack.toml"
MAX_MANIFEST_BYTES = 1 << 18
# tomllib takes time with the square of a dotted key's parts (measured: 112 s for one key of 130 kB),
# and a key cannot span lines.
MAX_LINE_BYTES = 1500

Task = Literal["chat", "embedding", "rerank", "transcription", "ocr", "layout"]
EngineKind = Literal["decoder-onnx", "encoder-onnx", "whisper-cpp", "onnx"]
ProfileName = Literal["exact", "throughput"]

# Names are used as directory names and model ids: no separators, no leading dot. (``\Z``, because
# ``$`` also matches before a last newline.)
PackName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}\Z")]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
# Flat or nested plain names; ``..`` and absolute paths cannot be spelled with this pattern.
FilePath = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*){0,3}\Z", max_length=200
    ),
]
# TOML integers have no bound; sizes and counts beyond these are no model's.
ByteCount = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]
PositiveInt = Annotated[int, msgspec.Meta(gt=0, le=(1 << 31) - 1)]
TokenId = Annotated[int, msgspec.Meta(ge=0, le=(1 << 31) - 1)]
Seconds = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]


class PackFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of the pack: its path inside, size in bytes and SHA-256."""

    path: FilePath
    size: ByteCount
    sha256: Sha256


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the weights came from: a pinned package (or hub repository) and its hash."""

    package: str
    version: str
    sha256: Sha256
    license: str


class Quality(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One measured figure of this build, the same figure of its float source, and the gate it passed.

    ``sample`` says on what it was measured, ``profile`` of which profile it is (absent: of the pack as it
    is served by default, which for a decoder is the profile "exact").
    """

    metric: str
    value: float
    reference: float | None = None
    limit: float | None = None
    sample: str = ""
    profile: ProfileName | None = None


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way to run a decoder: how much of the source's quality it gives for speed is in ``quality``.

    ``graph`` runs every token. ``alternative`` is another graph that keeps to the same limits: which of
    the two is faster is for the machine to tell. All graphs of a pack have the same inputs and outputs.
    """

    name: ProfileName
    graph: FilePath
    alternative: FilePath | None = None


class Decoder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the generation engine must know of a decoder graph (``engine = "decoder-onnx"``).

    ``graph`` is that of the profile "exact", which every pack has and which ``profiles`` need not list.
    """

    graph: FilePath = "model.onnx"
    profiles: Annotated[list[Profile], msgspec.Meta(max_length=8)] = []
    tokenizer: FilePath = "tokenizer.json"
    chat_template: FilePath | None = None
    layers: PositiveInt
    kv_heads: PositiveInt
    head_dim: PositiveInt
    vocab_size: PositiveInt
    eos_token_ids: list[TokenId]
    bos_token: str = ""
    eos_token: str = ""
    # The tool-call format that the chat template writes: "hermes" is ChatML with JSON calls.
    tool_format: Literal["none", "hermes", "llama3-json"] = "none"

    def profile(self, name: ProfileName) -> Profile | None:
        """Return a profile by its name, None when the pack does not have it."""
        listed = next((profile for profile in self.profiles if profile.name == name), None)
        return Profile(name=name, graph=self.graph) if listed is None and name == "exact" else listed


class Encoder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the encoding engine must know of an embedding or cross-encoder graph."""

    graph: FilePath = "model.onnx"
    tokenizer: FilePath = "tokenizer.json"
    dimensions: PositiveInt | None = None
    pooling: Literal["cls", "mean", "none"] = "none"
    output: str = ""
    pad_token_id: TokenId = 0


class Speech(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the speech engine must know of a whisper model."""

    model: FilePath = "model.bin"
    multilingual: bool
    # The alignment-heads preset of whisper.cpp for word times, such as "base" or "tiny.en".
    alignment: str | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole ``pack.toml``."""

    format: Literal[1]
    name: PackName
    version: str
    task: Task
    engine: EngineKind
    description: str
    license: str
    owned_by: str
    # Seconds since the epoch: the model's own date, so that no build puts its own time into a pack. (The
    # figures of ``quality`` may still differ from one CPU to another.)
    created: Seconds
    parameters: ByteCount = 0
    context_length: Annotated[int, msgspec.Meta(ge=0, le=(1 << 31) - 1)] = 0
    # Resident bytes the loaded model needs, without per-request state.
    memory_bytes: ByteCount = 0
    recipe_sha256: Sha256
    source: list[Source]
    file: Annotated[list[PackFile], msgspec.Meta(min_length=1, max_length=256)]
    quality: list[Quality] = []
    decoder: Decoder | None = None
    encoder: Encoder | None = None
    speech: Speech | None = None


def parse_manifest(text: bytes) -> Manifest:
    """Parse and check a ``pack.toml``.

    Raises PackError when it is too large, not TOML, not of the format, names a file twice or a file
    inside a file, lacks the section of its engine, a section names a file that is not listed, or the
    decoder's profiles contradict one another.
    """
    if len(text) > MAX_MANIFEST_BYTES:
        raise PackError(f"{MANIFEST_NAME} is larger than {MAX_MANIFEST_BYTES} bytes")
    if any(len(line) > MAX_LINE_BYTES for line in text.splitlines()):
        raise PackError(f"{MANIFEST_NAME} has a line of more than {MAX_LINE_BYTES} bytes")
    try:
        document: dict[str, Any] = tomllib.loads(text.decode("utf-8"))
        manifest = msgspec.convert(document, Manifest)
    # ValueError: also a number of more digits than Python converts, which tomllib lets through.
    except (ValueError, msgspec.ValidationError, RecursionError) as error:
        raise PackError(f"{MANIFEST_NAME} is not valid: {error}") from error
    _check_files(manifest)
    _check_sections(manifest)
    return manifest


def _check_files(manifest: Manifest) -> None:
    paths = {file.path for file in manifest.file}
    if len(paths) != len(manifest.file) or MANIFEST_NAME in paths:
        raise PackError(f"{MANIFEST_NAME} lists a file twice, or itself")
    for path in paths:
        for parent in PurePosixPath(path).parents:
            if str(parent) in paths or str(parent) == MANIFEST_NAME:
                raise PackError(f"{MANIFEST_NAME} lists {str(parent)!r} as a file and as a folder")


def _check_sections(manifest: Manifest) -> None:
    listed = {file.path for file in manifest.file}
    sections = {
        "decoder-onnx": manifest.decoder,
        "encoder-onnx": manifest.encoder,
        "whisper-cpp": manifest.speech,
    }
    if manifest.engine in sections and sections[manifest.engine] is None:
        raise PackError(f"{MANIFEST_NAME} lacks the section that engine {manifest.engine!r} needs")
    named: list[str | None] = []
    if manifest.decoder is not None:
        named += [manifest.decoder.graph, manifest.decoder.tokenizer, manifest.decoder.chat_template]
        named += [
            path for profile in manifest.decoder.profiles for path in (profile.graph, profile.alternative)
        ]
        _check_profiles(manifest.decoder)
    if manifest.encoder is not None:
        named += [manifest.encoder.graph, manifest.encoder.tokenizer]
    if manifest.speech is not None:
        named.append(manifest.speech.model)
    for path in named:
        if path is not None and path not in listed:
            raise PackError(f"{MANIFEST_NAME} names {path!r} for its engine but does not list that file")


def _check_profiles(decoder: Decoder) -> None:
    names = [profile.name for profile in decoder.profiles]
    if len(set(names)) != len(names):
        raise PackError(f"{MANIFEST_NAME} lists a profile twice")
    exact = decoder.profile("exact")
    if exact is None or exact.graph != decoder.graph:
        raise PackError(f"{MANIFEST_NAME} gives the profile 'exact' another graph than its decoder")


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of an unpacked pack. Raises PackError when it is absent or not valid."""
    path = directory / MANIFEST_NAME
    try:
        with path.open("rb") as file:
            return parse_manifest(file.read(MAX_MANIFEST_BYTES + 1))
    except OSError as error:
        raise PackError(f"cannot read {path}: {error.strerror}") from error
