"""The set-up code's half hour; what else it does is in tests/api/test_setup.py, on a running box."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from appliance.accounts import setup
from appliance.accounts.keys import Keyring
from appliance.accounts.setup import SetupCodes, WrongCodeError
from appliance.audit.log import AuditLog
from appliance.storage.database import Database

EMAIL, PASSWORD, HERE = "ada@example.org", "a long pass phrase", "192.0.2.1"


async def test_a_code_works_for_half_an_hour_and_another_one_after_it(
    database: Database, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = SetupCodes(database, keyring, AuditLog(b"a" * 32))
    now = 1000.0
    monkeypatch.setattr(setup, "time", SimpleNamespace(monotonic=lambda: now))
    late = codes.new_code()
    now += 30 * 60
    with pytest.raises(WrongCodeError, match="its half hour is over"):
        await codes.redeem(late, EMAIL, PASSWORD, HERE)
    early = codes.new_code()
    now += 30 * 60 - 1
    made = await codes.redeem(early, EMAIL, PASSWORD, HERE)
    assert keyring.authenticate(made.key).email == EMAIL
