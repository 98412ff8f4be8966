"""Runs the checks, one line each."""

from __future__ import annotations

import importlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from appliance.frozen import tree
from appliance.smoke.registry import CHECKS, Check, Ground, SkippedError

log = logging.getLogger(__name__)

TREE_PACKS = "smoke/packs"


def run_checks(
    say: Callable[[str], None],
    *,
    data_dir: Path | None = None,
    packs: Path | None = None,
    further: Iterable[tuple[str, Check]] = (),
) -> bool:
    """Run every check and ``further`` ones, tell each outcome to ``say``, and return whether all went well.

    The engines run the tree's own tiny packs, those of the folder ``packs``, and the packs installed under
    ``data_dir``. A check that cannot be tried here is named as skipped and does not count as a failure.
    """
    checks = [*((name, _loader(function)) for name, function in CHECKS), *further]
    width = max(len(name) for name, _ in checks)
    failed = skipped = 0
    with tempfile.TemporaryDirectory(prefix="appliance-smoke-") as folder:
        for number, (name, check) in enumerate(checks):
            work = Path(folder) / str(number)
            work.mkdir()
            ground = Ground(work=work, data_dir=data_dir, packs=_pack_folders(data_dir, packs))
            started = time.monotonic()
            try:
                word, detail = "ok", check(ground)
            except SkippedError as error:
                word, detail = "skipped", str(error)
                skipped += 1
            # Whatever it is: this is where it must be told, and the other checks still run.
            except Exception as error:
                word, detail = "FAILED", f"{type(error).__name__}: {error}"
                log.debug("the check %s failed", name, exc_info=True)
                failed += 1
            say(f"{word:<8}{name:<{width}}  {time.monotonic() - started:6.2f} s  {detail}")
    say(f"{len(checks) - failed - skipped} passed, {failed} failed, {skipped} skipped")
    return failed == 0


def _loader(function: str) -> Check:
    def check(ground: Ground) -> str:
        module, _, name = function.partition(":")
        found: Check = getattr(importlib.import_module(module), name)
        return found(ground)

    return check


def _pack_folders(data_dir: Path | None, packs: Path | None) -> tuple[tuple[str, Path], ...]:
    named = (
        ("built with the tree", tree() / TREE_PACKS),
        ("given", packs),
        ("installed", None if data_dir is None else data_dir / "packs"),
    )
    return tuple((word, folder) for word, folder in named if folder is not None and folder.is_dir())
