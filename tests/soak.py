"""Many clients for minutes: ``python -m tests.soak --minutes 10`` starts a service of its own and ends with 0 or 1.

Every client streams one request after another: greedy and seeded ones whose texts are known from a
run alone, constrained ones, tools, several choices, log probabilities, long prompts with a common
beginning and without; every third client hangs up somewhere. What must hold: the texts, no answer
of 500 or more but 503, no gap in a stream, memory that stays, and nothing left running at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.service import KEY, Service, link_default_packs, running_service
from tests.soak_requests import Asked, Heard, known_requests, some_request

MEBIBYTE = 1 << 20
KV_CACHE_BYTES = 1 << 30
# Of the run: what comes before is warm-up, in which memory may grow.
WARM_UP = 0.3
# Resident memory besides keys and values may grow by this much from the warm-up to the end.
GROWTH_BYTES = 200 * MEBIBYTE
IDLE_SECONDS = 30.0


@dataclass
class Record:
    """What happened so far."""

    finished: Counter[str] = field(default_factory=Counter)
    hung_up: int = 0
    refused: int = 0
    tokens: int = 0
    faults: list[str] = field(default_factory=list)
    # Seconds between two pieces of one stream, the longest of each kind of request.
    gaps: dict[str, float] = field(default_factory=dict)
    first_tokens: list[float] = field(default_factory=list)
    slowest_scrape: float = 0.0
    most_rows: float = 0.0
    deepest_queue: float = 0.0
    # (seconds since the start, resident bytes, bytes of keys and values)
    memory: list[tuple[float, int, int]] = field(default_factory=list)

    def fault(self, what: str, asked: Asked | None = None) -> None:
        """Note a fault with the request that shows it; the first ones are printed at once."""
        body = (
            "" if asked is None else f"\n    {asked.path} {json.dumps(asked.body, ensure_ascii=False)[:1500]}"
        )
        self.faults.append(what)
        if len(self.faults) <= 10:
            print(f"FAULT: {what}{body}", flush=True)


class LeftEarly(Exception):  # noqa: N818 - not an error: the client had enough
    """The client hung up."""


async def stream(
    http: httpx.AsyncClient, asked: Asked, record: Record, stall: float, patience: float = float("inf")
) -> Heard | None:
    """Ask, and listen for at most ``patience`` seconds; None when refused by 503 (after waiting) or broken.

    Raises LeftEarly when the patience ends first.
    """
    began = last = time.monotonic()
    heard = Heard()
    try:
        async with asyncio.timeout(None if patience == float("inf") else patience):
            async with http.stream("POST", asked.path, json=asked.body) as response:
                if response.status_code != 200:
                    text = (await response.aread()).decode()
                    if response.status_code != 503:
                        record.fault(f"status {response.status_code}: {text[:300]}", asked)
                        return None
                    record.refused += 1
                    await asyncio.sleep(min(5.0, float(response.headers.get("retry-after", "1"))))
                    return None
                async for line in response.aiter_lines():
                    now = time.monotonic()
                    if not line.startswith("data: "):
                        continue
                    if heard.pieces:
                        record.gaps[asked.kind] = max(record.gaps.get(asked.kind, 0.0), now - last)
                        if now - last > stall:
                            record.fault(f"{now - last:.1f} s between two pieces of a stream", asked)
                    heard.take(line)
                    if heard.pieces == 1 and len(record.first_tokens) < 1_000_000:
                        record.first_tokens.append(now - began)
                    last = now
    except TimeoutError:
        raise LeftEarly from None
    except (httpx.TransportError, json.JSONDecodeError) as error:
        record.fault(f"{type(error).__name__}: {error}", asked)
        return None
    if not heard.done:
        record.fault("a stream ended without [DONE]", asked)
        return None
    return heard


async def client(
    http: httpx.AsyncClient, place: int, known: list[Asked], record: Record, deadline: float, stall: float
) -> None:
    """Ask until the deadline; every third client loses its patience in most of its streams."""
    draw = random.Random(place)
    while time.monotonic() < deadline:
        asked = some_request(draw, known)
        leaves = place % 3 == 0 and draw.random() < 0.8
        try:
            patience = draw.choice([0.02, 0.5, 2, 5, 10]) * draw.random() if leaves else float("inf")
            heard = await stream(http, asked, record, stall, patience)
        except LeftEarly:
            record.hung_up += 1
            continue
        if heard is None:
            continue
        wrong = heard.error or asked.check(heard)
        if wrong:
            record.fault(f"{asked.kind}: {wrong}", asked)
        record.finished[asked.kind] += 1
        record.tokens += heard.completion_tokens


async def watch(service: Service, record: Record, began: float, stop: asyncio.Event) -> None:
    """Scrape the metrics and the process's memory every second."""
    headers = {"Authorization": f"Bearer {service.key}"}
    async with httpx.AsyncClient(base_url=service.base_url, headers=headers, trust_env=False) as http:
        while not stop.is_set():
            asked = time.monotonic()
            values = await scrape(http)
            record.slowest_scrape = max(record.slowest_scrape, time.monotonic() - asked)
            record.most_rows = max(record.most_rows, values["running_rows"])
            record.deepest_queue = max(record.deepest_queue, values["queue_depth"])
            kv = int(values["kv_cache_bytes"])
            record.memory.append((asked - began, resident_bytes(service.process.pid), kv))
            if kv > KV_CACHE_BYTES:
                record.fault(f"{kv} bytes of keys and values, {KV_CACHE_BYTES} are allowed")
            await asyncio.sleep(1)


async def scrape(http: httpx.AsyncClient) -> dict[str, float]:
    """Return the generation engine's gauges by their short names."""
    prefix = "appliance_engine_"
    values: dict[str, float] = {}
    for line in (await http.get("/metrics", timeout=60)).raise_for_status().text.splitlines():
        if line.startswith(prefix) and "smollm2" in line:
            name, _, value = line.rpartition(" ")
            values[name.partition("{")[0].removeprefix(prefix)] = float(value)
    return values


def resident_bytes(pid: int) -> int:
    """Return a process's resident memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1]) << 10


async def expect(http: httpx.AsyncClient, known: list[Asked], record: Record) -> None:
    """Ask the known requests one by one and keep, or compare, what is answered to each alone."""
    for asked in known:
        heard = await stream(http, asked, record, stall=60)
        if heard is None or heard.error:
            record.fault(f"alone: {heard.error if heard else 'no answer'}", asked)
        elif asked.expected is None:
            asked.expected = heard.texts
        elif wrong := asked.check(heard):
            record.fault(f"alone again: {wrong}", asked)


async def soak(service: Service, minutes: float, clients: int, stall: float) -> Record:
    """Run the whole: alone, together, alone again, idle."""
    record = Record()
    limits = httpx.Limits(max_connections=clients + 4)
    headers = {"Authorization": f"Bearer {service.key}"}
    async with httpx.AsyncClient(
        base_url=service.base_url,
        headers=headers,
        limits=limits,
        timeout=httpx.Timeout(600),  # longer than any stall that is measured
        trust_env=False,
    ) as http:
        known = known_requests()
        await expect(http, known, record)
        print(f"{len(known)} answers are known; {clients} clients for {minutes:g} minutes", flush=True)
        began, stop = time.monotonic(), asyncio.Event()
        watching = asyncio.create_task(watch(service, record, began, stop))
        deadline = began + minutes * 60
        async with asyncio.TaskGroup() as group:
            for place in range(clients):
                group.create_task(client(http, place, known, record, deadline, stall))
        stop.set()
        await watching
        await expect(http, known, record)
        await idle(http, record)
    return record


async def idle(http: httpx.AsyncClient, record: Record) -> None:
    """Wait until nothing runs or waits."""
    deadline = time.monotonic() + IDLE_SECONDS
    while True:
        values = await scrape(http)
        busy = {name: values[name] for name in ("running_rows", "queue_depth") if values[name]}
        if not busy:
            return
        if time.monotonic() > deadline:
            record.fault(f"still busy {IDLE_SECONDS:g} s after the last client: {busy}")
            return
        await asyncio.sleep(0.1)


def judge_memory(record: Record) -> str:
    """Compare memory after the warm-up with the end, without keys and values; return a line about it."""
    end = record.memory[-1][0]

    def rest(keep: Callable[[float], bool]) -> float:
        return statistics.median(rss - kv for at, rss, kv in record.memory if keep(at))

    warm = rest(lambda at: WARM_UP * end <= at <= (WARM_UP + 0.15) * end)
    last = rest(lambda at: at >= 0.85 * end)
    if last - warm > GROWTH_BYTES:
        record.fault(f"memory besides keys and values grew by {(last - warm) / MEBIBYTE:.0f} MiB")
    return (
        f"memory besides keys and values {warm / MEBIBYTE:.0f} MiB after the warm-up, {last / MEBIBYTE:.0f} at "
        f"the end; resident at most {max(rss for _, rss, _ in record.memory) / MEBIBYTE:.0f}; keys and values "
        f"at most {max(kv for _, _, kv in record.memory) / MEBIBYTE:.0f} of {KV_CACHE_BYTES / MEBIBYTE:.0f} MiB"
    )


def report(record: Record) -> None:
    """Print what was done and seen."""
    print(
        f"finished {sum(record.finished.values())} streams ({record.tokens} tokens): {dict(record.finished)}"
    )
    print(f"hung up {record.hung_up}, refused with 503 {record.refused}")
    waits = sorted(record.first_tokens)
    if waits:
        print(
            f"first piece after {statistics.median(waits):.2f} s (median), {waits[-1]:.1f} s (longest); "
            f"slowest scrape {record.slowest_scrape:.2f} s"
        )
        print("longest gap:", ", ".join(f"{kind} {gap:.2f} s" for kind, gap in sorted(record.gaps.items())))
    print(f"at most {record.most_rows:g} sequences ran and {record.deepest_queue:g} requests waited")
    print(judge_memory(record))
    for what, count in Counter(record.faults).most_common(20):
        print(f"FAULT x{count}: {what}")
    print("FAILED" if record.faults else "PASSED")


def main() -> int:
    """Parse the command line, run, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--stall", type=float, default=30, help="seconds that a stream may be silent")
    parser.add_argument(
        "--packs", type=Path, help="installed packs to serve, instead of building the default"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        data_dir = Path(directory) / "data"
        data_dir.mkdir()
        if given.packs is None:
            link_default_packs(data_dir)
        else:
            (data_dir / "packs").symlink_to(given.packs.absolute())
        with running_service(data_dir, key=KEY, APPLIANCE_KV_CACHE_BYTES=str(KV_CACHE_BYTES)) as service:
            record = asyncio.run(soak(service, given.minutes, given.clients, given.stall))
            if service.process.poll() is not None:
                record.fault("the service ended")
            log = service.log.read_text()
            if "Traceback" in log:
                start = log.index("Traceback")
                record.fault(
                    f"the service logged {log.count('Traceback')} exceptions, first:\n{log[start:][:2000]}"
                )
    report(record)
    return 1 if record.faults else 0


if __name__ == "__main__":
    sys.exit(main())
