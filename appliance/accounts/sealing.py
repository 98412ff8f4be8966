"""Keys of upstream servers: sealed in the store, so that a copy of it without the box's secret gives none away."""

from __future__ import annotations

import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from appliance.accounts.errors import AccountError
from appliance.accounts.secret import derive

PURPOSE = "provider keys"
NONCE_BYTES = 12


class Sealer:
    """Seals texts (ChaCha20-Poly1305, RFC 8439) under a key that derives from the box's secret.

    Each text belongs to one provider: sealed for one, it does not open for another.
    """

    def __init__(self, secret: bytes) -> None:
        """Take the box's secret, 32 bytes."""
        self._cipher = ChaCha20Poly1305(derive(secret, PURPOSE))

    def seal(self, text: str, provider_id: int) -> bytes:
        """Return nonce and ciphertext of a text."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, text.encode(), _context(provider_id))

    def open(self, sealed: bytes, provider_id: int) -> str:
        """Return the text. Raises AccountError (500) when it was changed, or sealed for another or elsewhere."""
        try:
            nonce, ciphertext = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
            return self._cipher.decrypt(nonce, ciphertext, _context(provider_id)).decode()
        except (InvalidTag, ValueError) as error:
            raise AccountError(
                f"The key of provider {provider_id} cannot be opened: it was sealed under another secret.",
                status=500,
                type="server_error",
            ) from error


def _context(provider_id: int) -> bytes:
    return str(provider_id).encode()
