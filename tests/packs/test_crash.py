"""kill -9 at any instant of an installation leaves the old pack or the new one, whole."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.disk import put_back, replace
from appliance.packs.store import PackStore
from tests.packs.sample import compress, contents, leftovers, snapshot, tar_of, write_pack


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    archive = tmp_path / "one.tar.zst"
    archive.write_bytes(compress(tar_of(contents(1))))
    return [str(archive), str(write_pack(tmp_path / "two", contents(2)))]


@pytest.mark.parametrize("options", [[], ["renames"]])
def test_killed_before_every_single_step(tmp_path: Path, sources: list[str], options: list[str]) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.packs.installing",
        "steps",
        str(tmp_path / "packs"),
        *sources,
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


@pytest.mark.parametrize("options", [[], ["renames"]])
def test_killed_at_random_instants(tmp_path: Path, options: list[str]) -> None:
    generator = random.Random(20)
    store = PackStore(tmp_path / "packs")
    packs = [write_pack(tmp_path / f"source{seed}", contents(seed, 300_000)) for seed in (1, 2)]
    wanted = [{f"sample/{path}": data for path, data in snapshot(pack).items()} for pack in packs]
    command = [
        sys.executable,
        "-m",
        "tests.packs.installing",
        "forever",
        str(store.path),
        *map(str, packs),
        *options,
    ]
    for _ in range(8):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as installing:
            assert installing.stdout is not None
            for _ in range(generator.randrange(1, 4)):
                assert installing.stdout.readline()
            # Spin, to die in the middle of the next installation instead of right after a line.
            for _ in range(generator.randrange(100_000)):
                pass
            installing.kill()
        store.sweep()
        assert snapshot(store.path) in wanted
        assert store.verify("sample").name == "sample"
        assert leftovers(store.path) == []


def test_a_swap_by_renames_that_was_interrupted_is_undone(tmp_path: Path) -> None:
    old = write_pack(tmp_path / "packs" / ".old-sample", contents(1))
    before = snapshot(old)
    PackStore(tmp_path / "packs").sweep()
    assert snapshot(tmp_path / "packs" / "sample") == before
    # Behind the point of no return the new one stays.
    write_pack(tmp_path / "packs" / ".old-sample", contents(2))
    put_back(tmp_path / "packs" / ".old-sample", tmp_path / "packs" / "sample")
    assert snapshot(tmp_path / "packs" / "sample") == before
    assert leftovers(tmp_path / "packs") == []


def test_a_link_to_a_pack_is_replaced_not_followed(tmp_path: Path) -> None:
    elsewhere = write_pack(tmp_path / "elsewhere", contents(1))
    before = snapshot(elsewhere)
    (tmp_path / "packs").mkdir()
    (tmp_path / "packs" / "sample").symlink_to(elsewhere)
    new = write_pack(tmp_path / "packs" / ".staging-1", contents(2))
    replace(new, tmp_path / "packs" / "sample", tmp_path / "packs" / ".old-sample")
    assert not (tmp_path / "packs" / "sample").is_symlink()
    assert snapshot(elsewhere) == before
    PackStore(tmp_path / "packs").remove("sample")
    assert snapshot(elsewhere) == before
