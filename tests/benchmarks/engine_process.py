"""Our own generation engine without HTTP, in a process of its own: what HTTP costs is measured beside it.

``python -m tests.benchmarks.engine_process FOLDER`` opens the pack in FOLDER with the settings of its
environment. One JSON line in, one out, like the peers.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.config import load_settings
from appliance.engines.cores import Cores
from appliance.engines.generation.contract import GenerationRequest, Sampling
from appliance.engines.generation.engine import GenerationEngine
from appliance.gateway.engines import close_engine, open_engine
from appliance.packs.manifest import read_manifest
from tests.benchmarks.environment import ROOT
from tests.benchmarks.peer_process import PeerProcess
from tests.service import clean_environment


class EngineProcess:
    """A running engine."""

    def __init__(self, process: PeerProcess) -> None:
        self._process = process

    def seconds(self, prompts: list[list[int]], tokens: int) -> float:
        """Continue all ``prompts`` at once by ``tokens`` tokens each; return how long that took.

        Raises RuntimeError when a stream has another length.
        """
        answer = self._process.ask(prompts=prompts, tokens=tokens)
        if answer["made"] != [tokens] * len(prompts):
            raise RuntimeError(f"{tokens} tokens a stream were asked for, {answer['made']} were made")
        return float(answer["seconds"])


@contextmanager
def running_engine(pack: Path, **settings: str) -> Iterator[EngineProcess]:
    """Open ``pack`` in another process with ``settings`` (``APPLIANCE_*``); stop it at the end."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.engine_process", str(pack)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        cwd=ROOT,
        env=clean_environment(**settings),
    ) as process:
        try:
            yield EngineProcess(PeerProcess(process))
        finally:
            process.kill()


async def _complete(engine: GenerationEngine, prompt: list[int], tokens: int) -> int:
    stream = engine.submit(
        GenerationRequest(
            prompt=prompt,
            max_tokens=tokens,
            sampling=Sampling(temperature=0.0),
            ignore_eos=True,
            skip_special_tokens=False,
            cache_scope="bench",
        )
    )
    return sum([len(delta.token_ids) async for delta in stream])


async def _complete_all(engine: GenerationEngine, prompts: list[list[int]], tokens: int) -> list[int]:
    return await asyncio.gather(*(_complete(engine, prompt, tokens) for prompt in prompts))


def main() -> None:
    """Answer requests until the input ends."""
    settings = load_settings()
    pack = Path(sys.argv[1])
    with asyncio.Runner() as runner:
        engine = runner.run(open_engine(pack, read_manifest(pack), Cores(settings.threads), settings))
        assert isinstance(engine, GenerationEngine)
        print(json.dumps({"version": "the service's own engine"}), flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            started = time.perf_counter()
            made = runner.run(_complete_all(engine, request["prompts"], request["tokens"]))
            print(json.dumps({"seconds": time.perf_counter() - started, "made": made}), flush=True)
        runner.run(close_engine(engine))


if __name__ == "__main__":
    main()
