"""While the service runs: heads go to the journal once they are committed, refused keys into the log."""

from __future__ import annotations

import logging
import time

import pytest

from appliance.audit.chain import head
from appliance.audit.keeper import AuditKeeper
from appliance.audit.lines import Filter, list_lines
from appliance.audit.log import AuditLog
from appliance.errors import OverloadedError
from appliance.storage.database import Database
from tests.audit.logs import ANNA, KEY, fill, tamper, verified


async def test_every_line_goes_to_the_journal_with_its_head(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    audit = AuditLog(KEY)
    keeper = AuditKeeper(database, audit)
    await keeper.start()
    assert f"head {database.read_sync(head).text}" in caplog.text
    await database.write(lambda db: audit.append(db, ANNA, "user.delete", "7"))
    await keeper.close()

    assert (
        f"audit 101 user.delete 7 by anna@example.org from 10.0.0.7, head {database.read_sync(head).text}"
        in (caplog.text)
    )
    assert audit.known == database.read_sync(head)


async def test_many_lines_at_once_end_with_the_last_head(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    keeper = AuditKeeper(database, AuditLog(KEY))
    await keeper.start()
    fill(database, 300)
    await keeper.close()

    assert len(caplog.messages) < 150
    assert caplog.messages[-1] == f"audit log: head {database.read_sync(head).text}"


async def test_refused_keys_become_lines_of_the_chain(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)  # all within one minute
    keeper = AuditKeeper(database, AuditLog(KEY))
    await keeper.start()
    for number in range(1500):
        keeper.refused.count(f"10.0.{number // 256}.{number % 256}")
    await keeper.close()

    lines = database.read_sync(lambda db: list_lines(db, Filter(action="key.refuse", limit=2000)))
    assert len(lines) == 1001
    assert sum(line.details["requests"] for line in lines) == 1500
    assert {line.source for line in lines} >= {"others", "10.0.0.0"}
    assert verified(database).broken is None


async def test_a_log_cut_off_behind_the_services_back_is_noticed(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    audit = AuditLog(KEY)
    keeper = AuditKeeper(database, audit)
    await keeper.start()
    tamper(database.path, "DELETE FROM audit WHERE id > 90")
    fill(database, 20)
    await keeper.close()

    assert "was cut off" in caplog.text
    assert verified(database).broken is None
    found = await audit.verify(database)
    assert found.broken is not None
    assert (found.broken.line, found.broken.reason) == (100, "other")


async def test_one_verification_runs_at_a_time(database: Database) -> None:
    audit = AuditLog(KEY)
    running = audit.verify(database)
    running.send(None)  # up to where it waits for the thread

    with pytest.raises(OverloadedError):
        await audit.verify(database)
    running.close()
    assert (await audit.verify(database)).lines == 100


async def test_a_store_that_is_closed_loses_no_count_silently(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = AuditKeeper(database, AuditLog(KEY))
    await keeper.start()
    keeper.refused.count("10.0.0.1")
    database.close()
    await keeper.close()

    assert "not kept up" in caplog.text
    assert [each.requests for each in keeper.refused.take(all_of_it=True)] == [1]
