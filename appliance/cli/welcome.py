"""What an operator sees at start, on the terminal, the console and in the journal: keys and codes only once."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import msgspec

from appliance.config import Settings
from appliance.service.listeners import own_address
from appliance.tls.names import own_addresses

EXAMPLE_BODY = (
    '{"model": "smollm2-135m-instruct", "max_tokens": 100, "messages": '
    '[{"role": "user", "content": "Why is the sky blue?"}]}'
)
SETUP_BODY = '{"code": "%s", "email": "you@example.org", "password": "…"}'


class Welcome(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to say: ``fingerprint`` with TLS, ``first_key`` or ``setup_code`` at a first boot."""

    url: str
    fingerprint: str | None = None
    first_key: str | None = None
    setup_code: str | None = None
    # Whether this is a clone's terminal, which also shows a call to copy.
    with_example: bool = True

    def text(self) -> str:
        """Return the lines."""
        lines = ["", f"  appliance is serving at {self.url}", f"  API documentation:      {self.url}/docs"]
        if self.fingerprint is not None:
            lines.append(f"  SHA-256 to trust:       {self.fingerprint}")
        lines.append("")
        key = self.first_key or "$APPLIANCE_KEY"
        curl = "curl" if self.fingerprint is None else "curl --cacert appliance.crt"
        if self.first_key is not None:
            lines += [f"  Administrator key (shown only this once): {self.first_key}", ""]
        if self.setup_code is not None:
            lines += [
                f"  Set-up code (works for 30 minutes, once): {self.setup_code}",
                "",
                "  Make the first administrator, here:  appliance setup",
                "  or from the network:",
                f"  {curl} {self.url}/setup -H 'Content-Type: application/json' \\",
                f"    -d '{SETUP_BODY % self.setup_code}'",
                "",
            ]
        elif self.with_example or self.first_key is not None:
            lines += [
                f"  {curl} {self.url}/v1/chat/completions \\",
                f'    -H "Authorization: Bearer {key}" -H "Content-Type: application/json" \\',
                f"    -d '{EXAMPLE_BODY}'",
                "",
            ]
        if self.first_key is None and self.setup_code is None:
            lines += ["  Lost the key? Make another: appliance key create --name NAME", ""]
        return "\n".join(lines)


def url_of(settings: Settings, listeners: Sequence[socket.socket]) -> str:
    """Return where clients reach the first listener: with TLS also from other machines, as far as is known."""
    secure = settings.tls != "off"
    host, port = own_address(listeners[0])
    if listeners[0].getsockname()[0] in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        lan = [str(address) for address in own_addresses() if not address.is_loopback] if secure else []
        host = next(iter(lan), "127.0.0.1")
    shown = f"[{host}]" if ":" in host else host
    default = 443 if secure else 80
    return f"{'https' if secure else 'http'}://{shown}" + ("" if port == default else f":{port}")
