"""The watchdog's question: a run that does not come back is an end of life, a long queue is not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, save

from appliance.config import Settings
from appliance.control import vitals
from appliance.control.errors import ControlError
from appliance.control.vitals import Vitals
from appliance.engines.cores import Cores
from appliance.engines.encoding.batching import Batcher
from appliance.engines.encoding.forward import Floats, TokenSequence
from appliance.engines.errors import EngineError
from appliance.gateway.catalog import Catalog
from appliance.packs.store import PackStore
from appliance.storage.database import Database


def endless_graph(path: Path) -> Path:
    """Write a graph whose run ends in thousands of years: a loop around an addition."""
    scalar, truth = TensorProto.FLOAT, TensorProto.BOOL
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["goes"]),
            helper.make_node("Add", ["sum", "sum"], ["more"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", truth, []),
            helper.make_tensor_value_info("sum", scalar, []),
        ],
        [
            helper.make_tensor_value_info("goes", truth, []),
            helper.make_tensor_value_info("more", scalar, []),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["steps", "", "start"], ["end"], body=body)],
        "endless",
        [],
        [helper.make_tensor_value_info("end", scalar, [])],
        [
            helper.make_tensor("steps", TensorProto.INT64, [], [1 << 62]),
            helper.make_tensor("start", scalar, [], [1.0]),
        ],
    )
    save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        str(path),
    )
    return path


class Stuck:
    """An encoder whose thread is inside ONNX Runtime and stays there until it is told to end."""

    def __init__(self, cores: Cores, graph: Path) -> None:
        self._session = cores.session(graph)
        self._options = onnxruntime.RunOptions()
        self.batcher = Batcher(self._forward, cores, max_queue_tokens=1000)

    def _forward(self, batch: list[TokenSequence]) -> Floats:
        found: Any = self._session.run(None, {}, self._options)
        return np.full((len(batch), 1), found[0], dtype=np.float32)

    def end(self) -> None:
        self._options.terminate = True


Ask = Callable[[Cores], Vitals]


@pytest.fixture
async def asked_by(tmp_path: Path) -> AsyncIterator[Ask]:
    """Give the signs of life of a service over an empty store, whose models run on the cores that it is given."""
    database = Database.open(tmp_path / "store.db", ())
    settings = Settings(data_dir=tmp_path)
    try:
        yield lambda cores: Vitals(database, Catalog(PackStore(settings.packs_dir), cores, settings))
    finally:
        await asyncio.to_thread(database.close)


async def is_held(cores: Cores) -> None:
    async with asyncio.timeout(30):
        while cores.run_seconds is None:  # noqa: ASYNC110 - a thread of ours tells no one
            await asyncio.sleep(0.01)


async def test_a_run_that_does_not_come_back_is_no_life(
    tmp_path: Path, asked_by: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores = Cores(1)
    asked = asked_by(cores)
    stuck = Stuck(cores, endless_graph(tmp_path / "endless.onnx"))
    try:
        await asked.alive()
        request = asyncio.create_task(stuck.batcher.run([TokenSequence(np.ones(4, dtype=np.int64))]))
        await is_held(cores)
        assert stuck.batcher.alive  # its thread is there: that alone would pass for life
        await asked.alive()  # it may take its time
        monkeypatch.setattr(vitals, "LONGEST_RUN_SECONDS", 0.0)
        with pytest.raises(ControlError, match="has not come back"):
            await asked.alive()
        stuck.end()
        with pytest.raises(EngineError):
            await request
        await asyncio.to_thread(stuck.batcher.close)
        await asked.alive()
    finally:
        stuck.end()


async def test_runs_that_follow_each_other_without_a_gap_are_life(asked_by: Ask) -> None:
    """Who waits long behind others is not stuck: the cores go from one run to the next, and each counts for itself."""
    clock = [0.0]
    cores = Cores(1, clock=lambda: clock[0])
    asked = asked_by(cores)
    granted, ended = threading.Event(), threading.Event()

    def follow() -> None:
        with cores.lease():
            granted.set()
            ended.wait()

    with cores.lease():
        following = asyncio.create_task(asyncio.to_thread(follow))
        async with asyncio.timeout(30):
            while not cores.waiting:  # noqa: ASYNC110 - a thread of ours tells no one
                await asyncio.sleep(0.01)
        clock[0] = vitals.LONGEST_RUN_SECONDS
        await asked.alive()
    try:
        await asyncio.to_thread(granted.wait)
        clock[0] += vitals.LONGEST_RUN_SECONDS
        await asked.alive()
        clock[0] += 1
        with pytest.raises(ControlError, match="has not come back"):
            await asked.alive()
    finally:
        ended.set()
        await following
