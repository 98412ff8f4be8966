"""``pack.toml`` from strangers."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.packs.errors import PackError
from appliance.packs.manifest import Manifest, Profile, parse_manifest
from tests.packs.sample import FILES, contents, manifest_text


def test_a_good_manifest_is_read() -> None:
    manifest = parse_manifest(manifest_text(FILES))
    assert manifest.name == "sample"
    assert [file.path for file in manifest.file] == list(FILES)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "2"}, "format"),
        ({"name": "../up"}, "name"),
        ({"name": "sample\\n"}, "name"),
        ({"name": ".hidden"}, "name"),
        ({"task": '"mining"'}, "task"),
        ({"created": "1" * 1400}, "created"),
        ({"created": str(1 << 70)}, "created"),
        ({"memory_bytes": "-1"}, "memory_bytes"),
        ({"surprise": "1"}, "surprise"),
        ({"recipe_sha256": f'"{"0" * 64}\\n"'}, "recipe_sha256"),
        ({"description": "[\n" * 5000}, "not valid"),
        ({"engine": '"whisper-cpp"'}, "lacks the section"),
        ({"speech": "{ multilingual = true, model = 'absent.bin' }"}, "does not list that file"),
        ({"quality": "[{ metric = 'loss', value = 1.0, profile = 'turbo' }]"}, "profile"),
    ],
)
def test_a_wrong_manifest_is_refused(changes: dict[str, str], words: str) -> None:
    with pytest.raises(PackError, match=words):
        parse_manifest(manifest_text(contents(1), **changes))


DECODER_FILES = {"model.onnx": b"exact", "fast.onnx": b"fast", "tokenizer.json": b"{}"}
DECODER = "layers = 1, kv_heads = 1, head_dim = 16, vocab_size = 2, eos_token_ids = [1]"


def decoder_manifest(profiles: str) -> Manifest:
    decoder = f"{{ {DECODER}, profiles = [{profiles}] }}"
    return parse_manifest(manifest_text(DECODER_FILES, engine='"decoder-onnx"', decoder=decoder))


def test_a_decoder_without_profiles_has_the_exact_one() -> None:
    decoder = decoder_manifest("").decoder
    assert decoder is not None
    assert decoder.profile("exact") == Profile(name="exact", graph="model.onnx")
    assert decoder.profile("throughput") is None


def test_a_decoder_tells_its_profiles_by_name() -> None:
    listed = '{ name = "exact", graph = "model.onnx", alternative = "fast.onnx" }'
    decoder = decoder_manifest(f'{listed}, {{ name = "throughput", graph = "fast.onnx" }}').decoder
    assert decoder is not None
    assert decoder.profile("exact") == Profile(name="exact", graph="model.onnx", alternative="fast.onnx")
    assert decoder.profile("throughput") == Profile(name="throughput", graph="fast.onnx")


@pytest.mark.parametrize(
    ("profiles", "words"),
    [
        ('{ name = "turbo", graph = "fast.onnx" }', "name"),
        ('{ name = "throughput" }', "graph"),
        ('{ name = "throughput", graph = "absent.onnx" }', "does not list that file"),
        (
            '{ name = "throughput", graph = "fast.onnx", alternative = "absent.onnx" }',
            "does not list that file",
        ),
        ('{ name = "throughput", graph = "../fast.onnx" }', "graph"),
        (", ".join(['{ name = "throughput", graph = "fast.onnx" }'] * 2), "a profile twice"),
        ('{ name = "exact", graph = "fast.onnx" }', "another graph"),
    ],
)
def test_profiles_that_do_not_fit_are_refused(profiles: str, words: str) -> None:
    with pytest.raises(PackError, match=words):
        decoder_manifest(profiles)


@pytest.mark.parametrize("files", [{"a": b"", "a/b": b""}, {"a/b/c": b"", "a/b": b""}, {"pack.toml/x": b""}])
def test_a_file_cannot_be_a_folder_too(files: dict[str, bytes]) -> None:
    with pytest.raises(PackError, match="as a file and as a folder"):
        parse_manifest(manifest_text(files))


@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode("utf-8", "replace")))
def test_nonsense_is_refused(text: bytes) -> None:
    with pytest.raises(PackError):
        parse_manifest(text)


@given(st.integers(0, 10_000), st.binary(max_size=8), st.integers(0, 20))
def test_a_changed_manifest_is_refused_or_read(position: int, inserted: bytes, removed: int) -> None:
    text = manifest_text(FILES)
    position %= len(text)
    with contextlib.suppress(PackError):  # any other error is a fault
        parse_manifest(text[:position] + inserted + text[position + removed :])
