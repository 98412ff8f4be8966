"""``python -m tests.airgap.box proof|plug``: see the package."""

from __future__ import annotations

import argparse
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model_packs.cache import default_cache
from tests.airgap.box.debian import fresh_root
from tests.airgap.box.goods import Goods, make_goods
from tests.airgap.box.machine import Box
from tests.airgap.box.needs import missing
from tests.airgap.box.network import RESOLVER, Networks, networks
from tests.airgap.box.plug import KINDS, pull_plugs
from tests.airgap.box.proof import Proof
from tests.airgap.box.shell import BoxError
from tests.samples.speech import jfk_wav


@contextmanager
def fresh_box(folder: Path) -> Iterator[tuple[Box, Networks, Goods]]:
    """Make the goods, the networks and a bare Debian that has booted; everything is gone at the end."""
    jfk_wav()  # fetched before the network goes
    goods = make_goods(folder)
    print(f"made: {goods.outer.name}, {goods.outer.stat().st_size / 1e6:.0f} MB", flush=True)
    with networks(folder) as nets:
        box = Box(fresh_root(folder, RESOLVER), nets.box, folder / "console.txt")
        try:
            print(f"a bare Debian 12 booted in {box.boot():.1f} s", flush=True)
            yield box, nets, goods
        finally:
            box.close()


def main() -> None:
    """Run; exit status 1 and the reason when something is not as it must be, 0 and SKIPPED where it cannot run."""
    parser = argparse.ArgumentParser(prog="python -m tests.airgap.box")
    parser.add_argument("what", choices=["proof", "plug"])
    parser.add_argument("--points", type=int, default=20, help="how often the plug is pulled, of each")
    parser.add_argument("--of", nargs="+", choices=KINDS, default=KINDS, help="in which work it is pulled")
    parser.add_argument("--folder", type=Path, default=default_cache(), help="where the box lies meanwhile")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    lacking = missing(options.folder)
    if lacking:
        print(f"SKIPPED: the air-gap proof was not run here, so nothing is proven. {'; '.join(lacking)}.")
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="appliance-box-", dir=options.folder) as name:
        try:
            with fresh_box(Path(name)) as (box, nets, goods):
                if options.what == "proof":
                    Proof(box, nets, goods, Path(name)).run()
                else:
                    pull_plugs(box, nets, goods, Path(name), options.points, options.of)
        except BoxError as error:
            raise SystemExit(f"FAILED after {time.monotonic() - began:.0f} s: {error}") from None
    print(f"passed in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
