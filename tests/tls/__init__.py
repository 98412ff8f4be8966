"""Tests of HTTPS; what several of them need."""

from __future__ import annotations

import ssl
from pathlib import Path


def openssl_verifies(authority: bytes, content: bytes, folder: Path) -> bool:
    """Tell whether OpenSSL, trusting the authority alone, takes a server's certificate (key and chain, PEM)."""
    pem = folder / "tried.pem"
    pem.write_bytes(content)
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(pem)
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    client_context.load_verify_locations(cadata=authority.decode())
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError:
                return False
    return client.version() is not None and server.version() is not None
