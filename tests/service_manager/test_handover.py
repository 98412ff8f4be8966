"""What a service manager hands over is taken by whom it is meant for, once, and nothing else is."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from appliance.service.errors import ServiceError
from appliance.service.handover import take_over

PROGRAM = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
from appliance.service.handover import take_over
taken = take_over()
taken = taken.listeners
print([each.getsockname()[1] for each in taken], [os.get_inheritable(each.fileno()) for each in taken])
print(sorted(name for name in os.environ if name.startswith(("LISTEN_", "NOTIFY_", "WATCHDOG_"))))
"""


def run(*sockets: socket.socket, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program with the sockets as its descriptors from 3 on."""
    start = "import fcntl, os, sys; fds = [int(each) for each in sys.argv[2:]]\n"
    start += "kept = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in fds]\n"
    start += "[os.dup2(fd, 3 + index, inheritable=True) for index, fd in enumerate(kept)]\n"
    start += "os.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])"
    numbers = [each.fileno() for each in sockets]
    return subprocess.run(
        [sys.executable, "-c", start, PROGRAM, *map(str, numbers)],
        pass_fds=numbers,
        env={**os.environ, "LISTEN_FDS": str(len(sockets)), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def listening() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


def test_listening_sockets_are_taken_and_handed_on_to_nobody() -> None:
    with listening() as one, listening() as two:
        result = run(one, two, NOTIFY_SOCKET="/run/x", WATCHDOG_USEC="1000000", LISTEN_FDNAMES="a:b")
        ports = [one.getsockname()[1], two.getsockname()[1]]
    assert result.stdout.splitlines() == [f"{ports} [False, False]", "[]"], result.stderr


def test_what_does_not_listen_is_refused_in_words() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        assert "descriptor 3, which is no listening TCP socket" in run(silent).stderr
    with socket.socket(socket.AF_UNIX) as other:
        assert "descriptor 3, which is no listening TCP socket" in run(other).stderr


@pytest.mark.parametrize("process", ["", "1", "x"])
def test_sockets_of_another_process_are_left_alone(process: str) -> None:
    environment = {"LISTEN_FDS": "1", "LISTEN_PID": process}
    assert take_over(environment).listeners == ()
    assert environment == {}


@pytest.mark.parametrize("count", ["-1", "x", "", "1e3", "²"])
def test_a_count_that_is_none_is_no_count(count: str) -> None:
    assert take_over({"LISTEN_FDS": count, "LISTEN_PID": str(os.getpid())}).listeners == ()


def test_an_absurd_count_is_refused() -> None:
    with pytest.raises(ServiceError, match="more than 16"):
        take_over({"LISTEN_FDS": "17", "LISTEN_PID": str(os.getpid())})


def test_the_watchdog_of_another_process_is_not_ours() -> None:
    assert take_over({"WATCHDOG_USEC": "2500000"}).watchdog_seconds == 2.5
    assert take_over({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": str(os.getpid())}).watchdog_seconds == 2.5
    assert take_over({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": "1"}).watchdog_seconds is None


def test_without_a_manager_there_is_nothing() -> None:
    taken = take_over({})
    assert (taken.notify_address, taken.watchdog_seconds, taken.listeners) == (None, None, ())
