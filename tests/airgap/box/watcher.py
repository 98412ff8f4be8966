"""Runs in the box's network namespace and notes what the box begins: a line ``INTERFACE PROTOCOL TO`` each.

A TCP connection is begun by a SYN without ACK; of UDP every packet counts. Answers to others' connections are
no news; nor is loopback, which goes nowhere. ARP and the kernel's own neighbour discovery are not a program's.
"""

from __future__ import annotations

import socket
import struct
import sys

ALL_PROTOCOLS = 0x0003
OUTGOING = 4  # PACKET_OUTGOING
IPV4, IPV6 = 0x0800, 0x86DD
TCP, UDP, ICMPV6 = 6, 17, 58
SYN, ACK = 0x02, 0x10


def begun(protocol: int, packet: bytes) -> str | None:
    """Return ``PROTOCOL TO`` when the Ethernet payload ``packet`` begins something, else None."""
    if protocol == IPV4 and len(packet) >= 20:
        rest = packet[(packet[0] & 15) * 4 :]
        inner, to = packet[9], socket.inet_ntop(socket.AF_INET, packet[16:20])
    elif protocol == IPV6 and len(packet) >= 40:
        rest, inner = packet[40:], packet[6]
        to = f"[{socket.inet_ntop(socket.AF_INET6, packet[24:40])}]"
    else:
        return None
    if inner == TCP and len(rest) >= 14:
        port = struct.unpack("!H", rest[2:4])[0]
        return f"tcp {to}:{port}" if rest[13] & (SYN | ACK) == SYN else None
    if inner == UDP and len(rest) >= 4:
        return f"udp {to}:{struct.unpack('!H', rest[2:4])[0]}"
    # Type 3 and 0 of ICMP answer somebody; the kernel's neighbours and groups are 130 to 143 of ICMPv6.
    if inner == ICMPV6 or (inner == 1 and rest[:1] in (b"\x00", b"\x03")):
        return None
    return f"ip-protocol-{inner} {to}"


def main() -> None:
    """Watch until killed."""
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ALL_PROTOCOLS)) as wire,
        open(sys.argv[1], "a", buffering=1) as notes,  # noqa: PTH123 - no imports that cost a start
    ):
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        print("watching", flush=True)
        while True:
            packet, (interface, protocol, kind, *_) = wire.recvfrom(2048)
            if kind == OUTGOING and interface != "lo" and (what := begun(protocol, packet)):
                notes.write(f"{interface} {what}\n")


if __name__ == "__main__":
    main()
