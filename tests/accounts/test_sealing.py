"""Sealed keys: only this box opens them, each for its own provider only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.accounts.errors import AccountError
from appliance.accounts.sealing import Sealer

SECRET = bytes(range(32))


@given(text=st.text())
def test_what_was_sealed_opens_after_a_restart(text: str) -> None:
    sealed = Sealer(SECRET).seal(text, 7)

    assert Sealer(SECRET).open(sealed, 7) == text
    assert len(text) < 4 or text.encode() not in sealed


def test_equal_keys_do_not_look_equal() -> None:
    sealer = Sealer(SECRET)
    assert sealer.seal("sk-upstream", 1) != sealer.seal("sk-upstream", 1)


def test_it_opens_for_its_provider_and_under_its_secret_only() -> None:
    sealed = Sealer(SECRET).seal("sk-upstream", 7)
    for sealer, provider in ((Sealer(SECRET), 8), (Sealer(bytes(32)), 7)):
        with pytest.raises(AccountError, match="another secret"):
            sealer.open(sealed, provider)


@pytest.mark.parametrize("keep", [0, 5, 12, 20, -1])
def test_what_was_cut_or_changed_does_not_open(keep: int) -> None:
    sealed = Sealer(SECRET).seal("sk-upstream", 7)
    for damaged in (sealed[:keep], sealed[:-1] + bytes([sealed[-1] ^ 1])):
        with pytest.raises(AccountError):
            Sealer(SECRET).open(damaged, 7)
