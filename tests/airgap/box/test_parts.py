"""What the proof itself rests on: the watcher's eye, the README's commands, the instants of the pulled plug."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import pytest

from build.archive import ROOT
from tests.airgap.box.appliance import CODE, readme_steps
from tests.airgap.box.network import OUTSIDE, OUTSIDE6, RESOLVER
from tests.airgap.box.pulling import Work, instants
from tests.airgap.box.watcher import IPV4, IPV6, begun

ARP = 0x0806


def ipv4(inner: int, to: str, payload: bytes) -> bytes:
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, inner, 0)
    return header + socket.inet_aton("198.51.100.2") + socket.inet_aton(to) + payload


def ipv6(inner: int, to: str, payload: bytes) -> bytes:
    header = struct.pack("!IHBB", 6 << 28, len(payload), inner, 64)
    return header + bytes(16) + socket.inet_pton(socket.AF_INET6, to) + payload


def tcp(port: int, flags: int) -> bytes:
    return struct.pack("!HHIIBBHHH", 40000, port, 0, 0, 0x50, flags, 0, 0, 0)


def udp(port: int) -> bytes:
    return struct.pack("!HHHH", 40000, port, 8, 0)


@pytest.mark.parametrize(
    ("protocol", "packet", "noted"),
    [
        (IPV4, ipv4(6, OUTSIDE, tcp(443, 0x02)), f"tcp {OUTSIDE}:443"),
        (IPV6, ipv6(6, OUTSIDE6, tcp(443, 0x02)), f"tcp [{OUTSIDE6}]:443"),
        (IPV4, ipv4(17, RESOLVER, udp(53)), f"udp {RESOLVER}:53"),
        (IPV4, ipv4(1, OUTSIDE, b"\x08\x00"), f"ip-protocol-1 {OUTSIDE}"),
    ],
)
def test_the_watcher_notes_what_the_box_begins(protocol: int, packet: bytes, noted: str) -> None:
    assert begun(protocol, packet) == noted


@pytest.mark.parametrize(
    ("protocol", "packet"),
    [
        (IPV4, ipv4(6, "192.168.77.20", tcp(40000, 0x12))),  # the answer to a SYN
        (IPV4, ipv4(6, "192.168.77.20", tcp(40000, 0x10))),
        (IPV4, ipv4(1, "192.168.77.20", b"\x03\x03")),  # port unreachable
        (IPV6, ipv6(58, "ff02::2", b"\x85\x00")),
        (ARP, bytes(28)),
        (IPV4, b"\x45"),
    ],
)
def test_answers_and_the_kernels_own_packets_are_no_beginning(protocol: int, packet: bytes) -> None:
    assert begun(protocol, packet) is None


def test_the_readme_has_commands_for_every_step_of_an_installation() -> None:
    steps = readme_steps((ROOT / "build" / "README.txt").read_text())

    assert steps[1] == ["sha256sum appliance-VERSION-NUMBER-install.tar"]
    assert "./install.sh" in steps[2]
    assert steps[3][0].startswith("journalctl")
    # What a client does stands elsewhere: a bare box has no curl.
    assert steps[4] == ["appliance tls export --out appliance.crt", "appliance tls fingerprint"]


def test_a_set_up_code_is_found_among_what_the_console_shows() -> None:
    assert CODE.findall("  Set-up code (works for 30 minutes, once): ABCD-2345-WXYZ\n") == ["ABCD-2345-WXYZ"]


def test_as_many_plugs_are_pulled_in_each_stretch_of_the_work_the_last_one_beyond_its_end() -> None:
    points = instants([10.0], 30.0, 20)

    assert [point.stretch for point in points] == [0] * 10 + [1] * 10
    assert 0 < points[0].seconds < points[9].seconds < 10
    assert 0 < points[10].seconds < 20 < points[19].seconds
    assert [point.stretch for point in instants([1.0, 1.0, 2.0], 3.0, 10)] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert len(instants([1.0, 2.0, 3.0, 4.0], 5.0, 3)) == 3


def test_a_stretch_begins_when_a_file_of_its_is_there_that_was_not_before(tmp_path: Path) -> None:
    work = Work("true", (("the trial", "data/.trial-*"),))
    (tmp_path / "data" / ".trial-1").mkdir(parents=True)
    before = work.marks(tmp_path)
    assert (work.has_begun(0, tmp_path, before), work.has_begun(1, tmp_path, before)) == (True, False)
    (tmp_path / "data" / ".trial-2").mkdir()
    assert work.has_begun(1, tmp_path, before)
