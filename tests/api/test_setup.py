"""The first administrator of a box that runs as a service: by a code that only its console shows, once."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service_manager.running import Running, managed_service, port_socket

EMAIL, PASSWORD = "ada@example.org", "a long pass phrase"
CODE = re.compile(
    r"Set-up code \(works for 30 minutes, once\): ([A-Z2-9]{4}-[A-Z2-9]{4}-[A-Z2-9]{4})$", re.MULTILINE
)


def client(box: Running, address: str = "127.0.0.1") -> httpx.Client:
    transport = httpx.HTTPTransport(local_address=address)
    return httpx.Client(base_url=f"http://127.0.0.1:{box.port}", transport=transport, timeout=60)


def codes(box: Running) -> list[str]:
    return CODE.findall(box.log.read_text())


def redeem(http: httpx.Client, code: str, /, **changed: Any) -> httpx.Response:
    return http.post("/setup", json={"code": code, "email": EMAIL, "password": PASSWORD, **changed})


def works(box: Running, key: str) -> bool:
    with client(box) as http:
        return http.get("/v1/admin/users", headers={"X-API-Key": key}).status_code == 200


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Running]:
    """Start a box that has nobody yet."""
    with port_socket() as listener, managed_service(tmp_path, listener, APPLIANCE_FIRST_BOOT="code") as box:
        box.wait_until_ready()
        yield box


def test_the_code_makes_the_first_administrator_once(box: Running) -> None:
    (code,) = codes(box)
    assert "sk-" not in box.log.read_text()
    with client(box) as http:
        made = redeem(http, code.lower().replace("-", " "))
        assert made.status_code == 201, made.text
        key = made.json()["key"]
        assert made.json() == {"user": 1, "id": 1, "key": key, "email": EMAIL}
        again = redeem(http, code)
        assert (again.status_code, "set up already" in again.text) == (409, True)
        assert works(box, key)
        login = http.post("/v1/auth/login", json={"email": EMAIL, "password": PASSWORD})
        assert login.status_code == 200
        lines = http.get("/v1/admin/audit", headers={"X-API-Key": key}).json()["data"]
    assert "user.bootstrap" in {line["action"] for line in lines}
    # Neither the key nor the password is anywhere but with who has them.
    assert key not in box.log.read_text()
    assert not any(key.encode() in each.read_bytes() for each in box.data_dir.glob("appliance.db*"))
    assert not any(code.encode() in each.read_bytes() for each in box.data_dir.glob("appliance.db*"))


def test_wrong_codes_are_refused_slower_and_slower_and_the_right_one_still_works(box: Running) -> None:
    (code,) = codes(box)
    with client(box, "127.0.9.1") as http:
        answers = [redeem(http, f"AAAA-BBBB-CC{number:02}") for number in range(7)]
    assert [answer.status_code for answer in answers[:5]] == [401] * 5
    assert answers[-1].status_code == 429
    assert int(answers[-1].headers["Retry-After"]) >= 1
    assert "wrong set-up codes" in answers[-1].text
    with client(box, "127.0.9.2") as http:
        assert redeem(http, code).status_code == 201


IMPOSSIBLE: list[dict[str, Any]] = [
    {"password": "short"},
    {"password": "x" * 2000},
    {"password": ""},
    {"password": None},
    {"email": ""},
    {"email": "  "},
    {"email": "a\nb@example.org"},
    {"email": "master"},
    {"email": ["a"]},
    {"code": ""},
    {"code": 5},
    {"code": "é" * 4000},
    {"code": "\0"},
]


def test_what_cannot_be_uses_up_no_code(box: Running) -> None:
    (code,) = codes(box)
    with client(box) as http:
        for changed in IMPOSSIBLE:
            refused = redeem(http, code, **changed)
            assert 400 <= refused.status_code < 429, (changed, refused.text)
        made = redeem(http, code)
        assert made.status_code == 201, made.text


def test_of_many_at_once_one_wins(box: Running) -> None:
    (code,) = codes(box)
    statuses: list[int] = []

    def race(number: int) -> None:
        with client(box, f"127.0.8.{number}") as http:
            statuses.append(redeem(http, code, email=f"user{number}@example.org").status_code)

    threads = [threading.Thread(target=race, args=[number]) for number in range(1, 9)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert min(statuses) == 201
    # Those who come later find the box set up, or the code gone.
    assert set(sorted(statuses)[1:]) <= {401, 409}


def test_a_restart_shows_another_code_and_none_once_it_is_set_up(tmp_path: Path) -> None:
    with port_socket() as listener:
        for count in (1, 2):
            with managed_service(tmp_path, listener, APPLIANCE_FIRST_BOOT="code") as box:
                box.wait_until_ready()
                assert len(codes(box)) == count
                if count == 2:
                    first, second = codes(box)
                    with client(box) as http:
                        assert redeem(http, first).status_code == 401
                        assert redeem(http, second).status_code == 201
                assert box.stop() == 0
        with managed_service(tmp_path, listener, APPLIANCE_FIRST_BOOT="code") as box:
            box.wait_until_ready()
            assert len(codes(box)) == 2
            with client(box) as http:
                assert redeem(http, "x").status_code == 409


def test_who_commands_the_box_needs_no_code(box: Running) -> None:
    made = box.command("setup", "--email", EMAIL, "--stdin", text=f"{PASSWORD}\n")
    assert made.returncode == 0, made.stderr
    assert works(box, made.stdout.strip())
    again = box.command("setup", "--email", "other@example.org", "--stdin", text=f"{PASSWORD}\n")
    assert (again.returncode, "set up already" in again.stderr) == (1, True)
    late = box.command("setup", "--new-code")
    assert (late.returncode, "set up already" in late.stderr) == (1, True)


def test_a_box_that_is_set_up_says_so_before_it_asks_for_anything(box: Running) -> None:
    made = box.command("setup", "--email", EMAIL, "--stdin", text=f"{PASSWORD}\n")
    assert made.returncode == 0, made.stderr
    late = box.command("setup", text="")
    assert (late.returncode, "set up already" in late.stderr, "E-mail" in late.stderr) == (1, True, False)
    assert box.stop() == 0
    alone = box.command("setup", text="")
    assert (alone.returncode, "set up already" in alone.stderr, "E-mail" in alone.stderr) == (1, True, False)


def test_a_password_from_a_pipe_needs_the_e_mail_as_an_option(box: Running) -> None:
    asked = box.command("setup", "--stdin", text=f"{EMAIL}\n{PASSWORD}\n")
    assert (asked.returncode, "give --email too" in asked.stderr) == (2, True)


def test_a_new_code_ends_the_one_before(box: Running) -> None:
    (old,) = codes(box)
    new = box.command("setup", "--new-code").stdout.strip()
    with client(box) as http:
        assert redeem(http, old).status_code == 401
        assert redeem(http, new).status_code == 201


def test_without_the_service_the_first_administrator_is_made_in_the_store(box: Running) -> None:
    assert box.stop() == 0
    assert "does not run" in box.command("setup", "--new-code").stderr
    made = box.command("setup", "--email", EMAIL, "--stdin", text=f"{PASSWORD}\n")
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("sk-")


def test_a_clone_prints_its_key_and_has_no_code(tmp_path: Path) -> None:
    with port_socket() as listener, managed_service(tmp_path, listener) as box:
        box.wait_until_ready()
        assert codes(box) == []
        with client(box) as http:
            assert redeem(http, "AAAA-BBBB-CCCC").status_code == 409
