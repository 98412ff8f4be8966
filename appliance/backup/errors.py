"""The errors of the backup room."""

from __future__ import annotations

import errno

from appliance.errors import ApplianceError


class BackupError(ApplianceError):
    """A backup that cannot be made, read, opened with this key, or restored here."""

    status = 400
    type = "invalid_request_error"


class BackupSpaceError(BackupError):
    """The disk has no room; nothing was changed."""

    status = 507


def refusal(error: OSError, doing: str) -> BackupError:
    """Put a system error into words: ``doing`` says what failed, such as "write the backup"."""
    # Of a file that was opened by its descriptor, the name is a number.
    place = f" ({error.filename})" if error.filename and not isinstance(error.filename, int) else ""
    what = f"cannot {doing}: {error.strerror or error}{place}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BackupSpaceError(f"{what}; free some space and try again")
    return BackupError(what, status=500, type="server_error")
