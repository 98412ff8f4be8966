"""From the start of the frozen program until it says READY, beside the start of LiteLLM's proxy."""

from __future__ import annotations

import functools
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from build.freeze import freeze
from tests.benchmarks.figures import OURS, Figure, alternate, in_turns
from tests.benchmarks.gateway import (
    LITELLM,
    LITELLM_ALIVE,
    LITELLM_ENVIRONMENT,
    START_SECONDS,
    litellm_command,
    litellm_version,
)
from tests.benchmarks.memory import descendants
from tests.benchmarks.section import Plan, Section
from tests.service import PLAIN, clean_environment, end, free_port, link_default_packs
from tests.service_manager.manager import listening_manager

READY = Figure(name="start until ready", unit="s", higher_is_better=False, digits=2)
PROCESSOR = Figure(name="processor time until ready", unit="s", higher_is_better=False, digits=2)
WANTED_SECONDS = 3.0
LOOK_EVERY_SECONDS = 0.02
# Nobody listens there: the proxy does not ask its engine when it starts.
ENGINE = "http://127.0.0.1:9"


def run(plan: Plan) -> Section:
    """Freeze this source and start both. Raises RuntimeError when a side does not come up, FreezeError."""
    plan.say("  freezing ...")
    program = freeze(plan.work / "frozen") / "appliance"
    data_dir = plan.work / "start"
    data_dir.mkdir()
    link_default_packs(data_dir)
    # Once for what later starts find done: the store, the packs' hashes, what suits the machine.
    cold = _service(program, data_dir)
    # A machine that was too busy to be measured would be measured again at every start.
    settings = {} if (data_dir / "tuning.json").is_file() else {"APPLIANCE_SELF_BENCHMARK": "false"}
    sides: dict[str, Callable[[], Mapping[str, float]]] = {
        OURS: functools.partial(_service, program, data_dir, **settings),
        LITELLM: functools.partial(_proxy, plan),
    }
    comparisons = alternate(
        [READY, PROCESSOR],
        lambda number: in_turns(sides, number),
        plan.rounds,
        plan.say,
        warm_up=plan.warm_up,
    )
    middle, least = statistics.median(comparisons[0].ours), min(comparisons[0].ours)
    reached = "reached" if middle < WANTED_SECONDS else "not reached"
    wanted = f"Wanted: ready in less than {WANTED_SECONDS:.0f} s with the default packs"
    checks = [
        f"{wanted}; {reached} (median {middle:.2f} s, least {least:.2f} s).",
        f"The first start, which hashes the packs and measures the machine: {cold[READY.name]:.2f} s.",
    ]
    if settings:
        checks.append("The machine was too busy to be measured: later starts ran without the self-benchmark.")
    return Section(
        title="Start",
        method=(
            "The frozen program over the default packs (chat, embeddings, reranking and transcription), which were "
            "loaded before, from its start until it tells its service manager that it is ready: every model answers. "
            "LiteLLM's proxy with one model of another server (one worker, no database), from its start until its "
            "liveliness answers; it loads no model. Processor time is that of all their processes."
        ),
        comparisons=comparisons,
        checks=checks,
        memory={},
        versions=[litellm_version(plan.python)],
    )


def _service(program: Path, data_dir: Path, **settings: str) -> dict[str, float]:
    """Start the service, wait for READY=1, and end it."""
    with (
        tempfile.TemporaryDirectory(prefix="appliance-start-") as folder,
        listening_manager(Path(folder)) as manager,
    ):
        settings |= {
            "APPLIANCE_DATA_DIR": str(data_dir),
            "APPLIANCE_PORT": str(free_port()),
            "NOTIFY_SOCKET": manager.address,
        }

        def wait(process: subprocess.Popen[bytes]) -> None:
            manager.wait_for(lambda message: message.get("READY") == "1", START_SECONDS)

        return _start([str(program), "serve"], settings, wait)


def _proxy(plan: Plan) -> dict[str, float]:
    """Start LiteLLM's proxy, wait for its first answer, and end it."""
    command, url = litellm_command(plan, ENGINE)

    def wait(process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS
        with httpx.Client(trust_env=False, timeout=2, verify=PLAIN) as client:
            while time.monotonic() < deadline and process.poll() is None:
                try:
                    if client.get(url + LITELLM_ALIVE).status_code == httpx.codes.OK:
                        return
                except httpx.TransportError:
                    time.sleep(LOOK_EVERY_SECONDS)
        raise RuntimeError("LiteLLM's proxy does not answer")

    return _start(command, LITELLM_ENVIRONMENT, wait)


def _start(
    command: Sequence[str], settings: Mapping[str, str], wait: Callable[[subprocess.Popen[bytes]], None]
) -> dict[str, float]:
    """Return the seconds until ``wait`` returns, and what all processes had of the processors by then."""
    started = time.perf_counter()
    with _process(command, settings) as process:
        wait(process)
        seconds = time.perf_counter() - started
        return {READY.name: seconds, PROCESSOR.name: _processor_seconds(process.pid)}


@contextmanager
def _process(command: Sequence[str], settings: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the end of the context, and end it in good order."""
    process = subprocess.Popen(
        command, env=clean_environment(**settings), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        end(process)


def _processor_seconds(pid: int) -> float:
    """Return the processor time of ``pid``, of the processes that it has and of those that it waited for."""
    ticks = 0
    for process in [pid, *descendants(pid)]:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")
