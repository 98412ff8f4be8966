"""What the service manager is told: ready no earlier than true, alive only while it is, progress in words."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from appliance.errors import ApplianceError
from appliance.service import notify
from appliance.service.errors import ServiceError
from appliance.service.notify import Notifier
from appliance.service.presence import Presence, serving
from tests.service_manager.manager import Manager, listening_manager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with listening_manager(tmp_path) as made:
        yield made


class Box:
    """A service whose models, socket and store a test sets."""

    def __init__(self, manager: Manager, watchdog_seconds: float | None = None) -> None:
        self.counts = (2, 2, 0)
        self.socket_answers = False
        self.store: float | ApplianceError = 0.0
        self.presence = Presence(Notifier(manager.address), self.answers, watchdog_seconds)

    def models(self) -> tuple[int, int, int]:
        return self.counts

    async def answers(self) -> None:
        if not self.socket_answers:
            raise ServiceError("not yet")

    async def alive(self) -> None:
        if isinstance(self.store, ApplianceError):
            raise self.store
        await asyncio.sleep(self.store)


async def told(manager: Manager, wanted: Callable[[dict[str, str]], bool]) -> dict[str, str]:
    """Wait for a message."""
    return await asyncio.to_thread(manager.wait_for, wanted)


async def silent(manager: Manager, name: str) -> bool:
    """Tell whether nothing is said of a state for a while."""
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        if any(name in message for message in await asyncio.to_thread(manager.receive, 0.1)):
            return False
    return True


async def heard_out(manager: Manager) -> None:
    """Take what is on its way."""
    while await asyncio.to_thread(manager.receive, 0.5):
        pass


async def test_ready_comes_after_the_models_and_the_socket(manager: Manager) -> None:
    box = Box(manager)
    box.presence.start(box.models, box.alive)
    try:
        await told(manager, lambda message: message == {"STATUS": "loading models: 0 of 2"})
        assert any("EXTEND_TIMEOUT_USEC" in message for message in manager.messages)
        assert await silent(manager, "READY")
        box.counts = (2, 0, 1)
        assert await silent(manager, "READY")
        box.socket_answers = True
        ready = await told(manager, lambda message: "READY" in message)
        assert ready == {"READY": "1", "STATUS": "serving 1 of 2 models, 1 cannot be loaded"}
        assert await silent(manager, "READY")
    finally:
        await box.presence.close()


async def test_the_watchdog_is_fed_only_while_the_store_and_the_engines_answer(
    manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    box = Box(manager, watchdog_seconds=0.6)
    box.counts, box.socket_answers = (1, 0, 0), True
    box.presence.start(box.models, box.alive)
    try:
        for _ in range(3):
            await told(manager, lambda message: "WATCHDOG" in message)
        box.store = ServiceError("the engine of x has no thread any more")
        await heard_out(manager)
        assert await silent(manager, "WATCHDOG")
        assert "the engine of x has no thread any more" in caplog.text
        box.store = 60.0  # it hangs
        assert await silent(manager, "WATCHDOG")
        box.store = 0.0
        await told(manager, lambda message: "WATCHDOG" in message)
    finally:
        await box.presence.close()


async def test_models_that_come_and_go_change_the_status(manager: Manager) -> None:
    box = Box(manager, watchdog_seconds=0.3)
    box.counts, box.socket_answers = (1, 0, 0), True
    box.presence.start(box.models, box.alive)
    try:
        await told(manager, lambda message: "READY" in message)
        box.counts = (2, 1, 0)
        await told(manager, lambda message: message.get("STATUS") == "serving 1 of 2 models, 1 being loaded")
    finally:
        await box.presence.close()


async def test_without_a_manager_nothing_runs() -> None:
    async def never() -> None:
        raise AssertionError

    presence = Presence(Notifier(None), never)
    presence.start(lambda: (0, 0, 0), never)
    await presence.close()
    Notifier(None).ready("nobody hears it")


def test_a_status_is_one_line(manager: Manager) -> None:
    Notifier(manager.address).status("a\nREADY=1\n  b" + "x" * 1000)

    (message,) = manager.receive()
    assert set(message) == {"STATUS"}
    assert message["STATUS"].startswith("a READY=1 bxx")
    assert len(message["STATUS"]) == 200


def test_a_manager_that_is_gone_stops_nothing(tmp_path: Path) -> None:
    Notifier(str(tmp_path / "nobody")).ready("still serving")


def test_long_work_extends_the_time_but_not_for_ever(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = itertools.count()  # another one whenever the clock is looked at
    monkeypatch.setattr(notify, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    monkeypatch.setattr(notify, "EXTEND_EVERY_SECONDS", 0.01)
    with Notifier(manager.address).extending("migrating", 5.0):
        give_up = time.monotonic() + 60
        while any(thread.name == "notify" for thread in threading.enumerate()):
            assert time.monotonic() < give_up, "it extends for ever"
            time.sleep(0.01)
    while manager.receive(0.1):
        pass
    assert manager.messages == [{"STATUS": "migrating"}, *[{"EXTEND_TIMEOUT_USEC": "60000000"}] * 4]


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ((0, 0, 0), "serving 0 models"),
        ((3, 0, 0), "serving 3 models"),
        ((3, 1, 1), "serving 1 of 3 models, 1 being loaded, 1 cannot be loaded"),
    ],
)
def test_how_it_goes_is_said_in_words(counts: tuple[int, int, int], text: str) -> None:
    assert serving(*counts) == text
