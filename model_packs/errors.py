"""The errors of the build side; each carries a text that says what to do."""

from __future__ import annotations


class BuildError(Exception):
    """A pack cannot be built."""


class RecipeError(BuildError):
    """A recipe that is absent or not valid."""


class SourceError(BuildError):
    """A source that cannot be fetched, has the wrong hash, or does not hold what the recipe names."""


class QualityError(BuildError):
    """A build that lost more than its recipe allows; the text holds the figures."""
