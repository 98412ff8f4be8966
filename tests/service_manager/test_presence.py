"""What the service manager is told: ready no earlier than true, alive only while it is, progress in words."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

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


async def told(manager: Manager, name: str, seconds: float = 1.0) -> list[str]:
    """Return what is said of a state within some time."""
    end = time.monotonic() + seconds
    found: list[str] = []
    while time.monotonic() < end:
        messages = await asyncio.to_thread(manager.receive, 0.1)
        found += [message[name] for message in messages if name in message]
    return found


async def test_ready_comes_after_the_models_and_the_socket(manager: Manager) -> None:
    box = Box(manager)
    box.presence.start(box.models, box.alive)
    try:
        assert await told(manager, "READY") == []
        assert {"STATUS": "loading models: 0 of 2"} in manager.messages
        assert any("EXTEND_TIMEOUT_USEC" in message for message in manager.messages)
        box.counts = (2, 0, 1)
        assert await told(manager, "READY") == []
        box.socket_answers = True
        assert await told(manager, "READY") == ["1"]
        assert {"READY": "1", "STATUS": "serving 1 of 2 models, 1 cannot be loaded"} in manager.messages
    finally:
        await box.presence.close()


async def test_the_watchdog_is_fed_only_while_the_store_and_the_engines_answer(
    manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    box = Box(manager, watchdog_seconds=0.6)
    box.counts, box.socket_answers = (1, 0, 0), True
    box.presence.start(box.models, box.alive)
    try:
        assert len(await told(manager, "WATCHDOG", 1.5)) >= 3
        box.store = ServiceError("the engine of x has no thread any more")
        await told(manager, "WATCHDOG", 0.5)
        assert await told(manager, "WATCHDOG", 1.0) == []
        assert "the engine of x has no thread any more" in caplog.text
        box.store = 60.0  # it hangs
        assert await told(manager, "WATCHDOG", 1.0) == []
        box.store = 0.0
        assert await told(manager, "WATCHDOG", 1.5)
    finally:
        await box.presence.close()


async def test_models_that_come_and_go_change_the_status(manager: Manager) -> None:
    box = Box(manager, watchdog_seconds=0.3)
    box.counts, box.socket_answers = (1, 0, 0), True
    box.presence.start(box.models, box.alive)
    try:
        await told(manager, "READY")
        box.counts = (2, 1, 0)
        assert "serving 1 of 2 models, 1 being loaded" in await told(manager, "STATUS")
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
    monkeypatch.setattr(notify, "EXTEND_EVERY_SECONDS", 0.05)
    with Notifier(manager.address).extending("migrating", 0.3):
        time.sleep(1.0)
    while manager.receive(0.1):
        pass
    extensions = [message for message in manager.messages if "EXTEND_TIMEOUT_USEC" in message]
    assert {"STATUS": "migrating"} in manager.messages
    assert 3 <= len(extensions) <= 8
    assert extensions[0] == {"EXTEND_TIMEOUT_USEC": "60000000"}


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
