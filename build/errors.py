"""The one error of freezing."""

from __future__ import annotations


class FreezeError(Exception):
    """The tree could not be made, or is not what it must be; the message says what to do."""
