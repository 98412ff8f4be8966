"""The errors of the packs room."""

from __future__ import annotations

import errno

from appliance.errors import ApplianceError


class PackError(ApplianceError):
    """A pack that is not there, not whole, or not what it says."""

    status = 400
    type = "invalid_request_error"


class PackNotFoundError(PackError):
    """No pack of that name is installed."""

    status = 404

    def __init__(self, name: str) -> None:
        super().__init__(f"no pack named {name!r} is installed")


class PackCancelledError(PackError):
    """The work was stopped because its caller asked for it; nothing was changed."""

    status = 409


class PackSpaceError(PackError):
    """The disk has no room for the pack; nothing was changed."""

    status = 507


class PackStoreError(PackError):
    """The directory of the packs cannot be read or written."""

    status = 500
    type = "server_error"


def refusal(error: OSError, doing: str) -> PackError:
    """Put a system error into words: ``doing`` says what failed, such as "install the pack"."""
    what = f"cannot {doing}: {error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return PackSpaceError(f"{what}; free some space and try again")
    return PackStoreError(what)
