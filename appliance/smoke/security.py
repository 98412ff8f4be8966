"""Checks of what protects: password hashes, signatures, TLS."""

from __future__ import annotations

import asyncio
import ssl

from appliance.accounts.passwords import hash_password, verify_password
from appliance.frozen import tree
from appliance.signing.errors import SigningError
from appliance.signing.keys import SecretKey, write_public_key
from appliance.signing.signatures import Subject, sign_file
from appliance.signing.trust import TrustStore
from appliance.signing.verification import verify_file
from appliance.smoke.registry import Ground, SmokeError


def passwords(_: Ground) -> str:
    """Hash a password; the right one passes and another does not."""

    async def tried() -> tuple[str, bool, bool]:
        made = await hash_password("correct horse")
        return made, await verify_password("correct horse", made), await verify_password("battery", made)

    made, right, wrong = asyncio.run(tried())
    if not right or wrong:
        raise SmokeError("a password's hash does not tell the right password from another")
    return made.split("$")[1]


def signatures(ground: Ground) -> str:
    """Sign a file with a new key and verify it; the same file with one bit changed is refused."""
    secret = SecretKey.generate()
    (ground.work / "keys").mkdir()
    write_public_key(ground.work / "keys" / "smoke.pub", secret.public)
    trust = TrustStore(ground.work / "record", [ground.work / "keys"])
    signed = ground.work / "thing"
    signed.write_bytes(b"some bytes")
    sign_file(signed, secret, Subject(name="smoke", sequence=1, kind="pack"))
    verify_file(signed, trust)
    signed.write_bytes(b"some bytez")
    try:
        verify_file(signed, trust)
    except SigningError:
        built_in = len(list((tree() / "trust").glob("*.pub")))
        return f"Ed25519 over BLAKE2b-512; {built_in} trusted keys in the tree"
    raise SmokeError("a file that was changed after it was signed is taken for good")


def tls(_: Ground) -> str:
    """Make a server's TLS context."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not context.get_ciphers():
        raise SmokeError("OpenSSL offers no ciphers")
    return ssl.OPENSSL_VERSION
