"""Whatever somebody without the secret does to the log, wherever: verification finds it and says what."""

# ruff: noqa: S608 - the tests are who tampers

from __future__ import annotations

import random
from pathlib import Path

import pytest

from appliance.audit.chain import EMPTY, Head, head, parse_head
from appliance.audit.errors import AuditError
from appliance.storage.database import Database
from tests.audit.logs import fill, opened, tamper, verified

PLACES = [1, 2, 50, 99, 100, *random.Random(4).sample(range(3, 98), 5)]
COLUMNS = {
    "created_at": "created_at + 1",
    "actor_id": "NULL",
    "actor": "'somebody@example.org'",
    "source": "source || ' '",
    "action": "'user.delete'",
    "target": "target || CAST(x'00' AS TEXT)",
    "details": '\'{"name": "another"}\'',
    "mac": "zeroblob(32)",
}


def test_a_log_as_it_was_written_is_whole(database: Database) -> None:
    found = verified(database)

    assert found.broken is None
    assert found.lines == found.head.line == 100
    assert found.head == database.read_sync(head)
    assert verified(database, found.head).broken is None


def test_an_empty_log_is_whole_unless_a_line_was_recorded(tmp_path: Path) -> None:
    database = opened(tmp_path / "empty.db")
    found = verified(database, EMPTY)
    cut = verified(database, Head(1, b"m" * 32)).broken
    database.close()

    assert found.broken is None
    assert found.head == EMPTY
    assert cut is not None
    assert (cut.line, cut.reason) == (1, "cut")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("column", COLUMNS)
def test_a_changed_line_is_found(database: Database, place: int, column: str) -> None:
    tamper(database.path, f"UPDATE audit SET {column} = {COLUMNS[column]} WHERE id = {place}")

    broken = verified(database).broken
    assert broken is not None
    assert (broken.line, broken.reason) == (place, "changed")


@pytest.mark.parametrize("place", PLACES)
def test_a_text_that_is_none_is_a_changed_line(database: Database, place: int) -> None:
    tamper(database.path, f"UPDATE audit SET target = CAST(x'ff80' AS TEXT) WHERE id = {place}")

    broken = verified(database).broken
    assert broken is not None
    assert (broken.line, broken.reason) == (place, "changed")


@pytest.mark.parametrize("place", [place for place in PLACES if place < 100])
def test_a_missing_line_is_found(database: Database, place: int) -> None:
    tamper(database.path, f"DELETE FROM audit WHERE id = {place}")

    broken = verified(database).broken
    assert broken is not None
    assert (broken.line, broken.reason) == (place, "missing")


@pytest.mark.parametrize("place", [place for place in PLACES if place < 100])
def test_a_missing_line_is_found_when_the_others_move_up(database: Database, place: int) -> None:
    moved = [f"UPDATE audit SET id = id - 1 WHERE id = {number}" for number in range(place + 1, 101)]
    tamper(database.path, f"DELETE FROM audit WHERE id = {place}", *moved)

    broken = verified(database).broken
    assert broken is not None
    assert broken.line == place


@pytest.mark.parametrize("seed", range(12))
def test_lines_that_changed_places_are_found(database: Database, seed: int) -> None:
    first, second = sorted(random.Random(seed).sample(range(1, 101), 2)) if seed else (40, 41)
    tamper(
        database.path,
        f"UPDATE audit SET id = -1 WHERE id = {first}",
        f"UPDATE audit SET id = {first} WHERE id = {second}",
        f"UPDATE audit SET id = {second} WHERE id = -1",
    )

    broken = verified(database).broken
    assert broken is not None
    assert (broken.line, broken.reason) == (first, "reordered")
    assert f"what was line {second}" in broken.message


@pytest.mark.parametrize("left", [0, 1, 42, 99])
def test_a_log_cut_off_at_the_end_is_found_by_a_recorded_head(database: Database, left: int) -> None:
    recorded = database.read_sync(head)
    tamper(database.path, f"DELETE FROM audit WHERE id > {left}")

    assert verified(database).broken is None  # nothing in the store can tell
    broken = verified(database, recorded).broken
    assert broken is not None
    assert (broken.line, broken.reason) == (left + 1, "cut")


def test_a_log_cut_off_and_continued_is_found_by_a_recorded_head(database: Database) -> None:
    recorded = database.read_sync(head)
    tamper(database.path, "DELETE FROM audit WHERE id > 60")
    fill(database, 80)

    assert verified(database).broken is None
    broken = verified(database, recorded).broken
    assert broken is not None
    assert (broken.line, broken.reason) == (100, "other")


@pytest.mark.parametrize("lines", [1, 30])
def test_lines_written_without_the_secret_are_found(database: Database, lines: int) -> None:
    fill(database, lines, key=b"another key of thirty-two bytes.")
    fill(database, 1)

    broken = verified(database).broken
    assert broken is not None
    assert (broken.line, broken.reason) == (101, "changed")


def test_a_line_before_the_first_is_found(database: Database) -> None:
    tamper(
        database.path,
        "INSERT INTO audit SELECT -3, created_at, actor_id, actor, source, action, target, details, mac "
        "FROM audit WHERE id = 1",
    )

    broken = verified(database).broken
    assert broken is not None
    assert (broken.line, broken.reason) == (-3, "changed")


@pytest.mark.parametrize("seed", range(40))
def test_random_tampering_is_always_found(database: Database, seed: int) -> None:
    chance = random.Random(seed)
    recorded = database.read_sync(head)
    place, other = chance.sample(range(1, 101), 2)
    tamper(
        database.path,
        chance.choice(
            [
                f"UPDATE audit SET details = json_set(details, '$.more', {seed}) WHERE id = {place}",
                f"DELETE FROM audit WHERE id = {place}",
                f"DELETE FROM audit WHERE id BETWEEN {min(place, other)} AND {max(place, other)}",
                f"DELETE FROM audit WHERE id >= {place}",
                f"UPDATE audit SET target = (SELECT target FROM audit WHERE id = {other}) WHERE id = {place}",
                f"UPDATE audit SET mac = (SELECT mac FROM audit WHERE id = {other}) WHERE id = {place}",
                f"UPDATE audit SET id = id + 1000 WHERE id = {place}",
            ]
        ),
    )

    broken = verified(database, recorded).broken
    assert broken is not None
    assert broken.line <= place


def test_a_head_is_read_back_from_its_text(database: Database) -> None:
    found = database.read_sync(head)

    assert parse_head(found.text) == found
    assert parse_head(f" {found.text}\n") == found


@pytest.mark.parametrize(
    "text",
    ["", ":", "1:", "x:" + "0" * 64, "1:" + "0" * 63, "1:" + "g" * 64, "-1:" + "0" * 64, "1:" + "00 " * 32],
)
def test_what_is_no_head_is_refused(text: str) -> None:
    with pytest.raises(AuditError, match="64 hexadecimal"):
        parse_head(text)
