"""Check the licences of the locked run-time packages: ``python -m tests.licences LOCK``.

Allowed are permissive licences, MPL, and LGPL where it is a replaceable shared library; never GPL or
AGPL. A package whose metadata says too little is named here with what its own files say.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

ALLOWED = re.compile(
    r"\b(MIT|BSD|Apache|ISC|PSF|Python Software Foundation|zlib|MPL|Mozilla|Unlicense|CC0|0BSD|HPND|public domain)",
    re.IGNORECASE,
)
FORBIDDEN = re.compile(r"\b(A?GPL|Affero|GNU General Public)", re.IGNORECASE)
# Metadata without a licence field, read from the package's own licence file.
READ_BY_HAND = {
    "flatbuffers": "Apache-2.0",
    "pysqlite3": "zlib",
    "sqlite-fts4": "Apache-2.0",
    "click-default-group": "Unlicense",
}


def licence_of(name: str) -> str:
    """Return what a package says of its licence: the expression, the field, or the classifiers."""
    if name in READ_BY_HAND:
        return READ_BY_HAND[name]
    metadata = distribution(name).metadata.json
    classifiers = [
        line.split(" :: ")[-1] for line in metadata.get("classifier", []) if line.startswith("License")
    ]
    field = str(metadata.get("license", "")).strip().splitlines()[:1]
    return str(metadata.get("license_expression") or " ".join(classifiers) or " ".join(field))


def locked_names(lock: Path) -> list[str]:
    """Return the package names of a requirement file."""
    return sorted(
        {match[1] for match in re.finditer(r"^([A-Za-z0-9._-]+)==", lock.read_text(), re.MULTILINE)}
    )


def problems(lock: Path) -> list[str]:
    """Return a line for every package whose licence is not allowed or not known."""
    found = []
    for name in locked_names(lock):
        try:
            licence = licence_of(name)
        except PackageNotFoundError:
            continue  # locked for another platform or Python
        if FORBIDDEN.search(licence.replace("LGPL", "")) or not (
            ALLOWED.search(licence) or "LGPL" in licence
        ):
            found.append(f"{name}: {licence or 'no licence in its metadata'}")
    return found


if __name__ == "__main__":
    lines = problems(Path(sys.argv[1]))
    print("\n".join(lines) or f"licences of {sys.argv[1]}: all allowed")
    sys.exit(bool(lines))
