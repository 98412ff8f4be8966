"""The bill of materials (CycloneDX 1.6, JSON) and the licences of a frozen tree, the same bytes for the same tree."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote

from build.elf import is_elf
from build.inventory import Component

SBOM = "sbom.cdx.json"
LICENCES = "LICENCES.txt"
TEXTS = "licences"
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "appliance.invalid")


def write_sbom(tree: Path, version: str, components: list[Component]) -> None:
    """Write ``sbom.cdx.json``: every component with its licence, and the SHA-256 of its shared libraries."""
    document: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": "appliance",
                "name": "appliance",
                "version": version,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            }
        },
        "components": [_entry(tree, component) for component in components],
        "dependencies": [{"ref": "appliance", "dependsOn": sorted(map(_purl, components))}],
    }
    # No random number and no time: the same tree has the same document.
    content = json.dumps(document, sort_keys=True)
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(NAMESPACE, content)}"
    (tree / SBOM).write_text(
        json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8"
    )


def _purl(component: Component) -> str:
    kinds = {"python-package": "pypi", "debian-package": "deb/debian", "python": "generic"}
    return f"pkg:{kinds[component.kind]}/{quote(component.name)}@{quote(component.version)}"


def _entry(tree: Path, component: Component) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": "library",
        "bom-ref": _purl(component),
        "purl": _purl(component),
        "name": component.name,
        "version": component.version,
        "licenses": [{"license": {"name": component.licence}}],
    }
    libraries = []
    for name in component.files:
        path = tree / name
        if path.is_file() and not path.is_symlink() and is_elf(path):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            libraries.append(
                {"type": "file", "name": name, "hashes": [{"alg": "SHA-256", "content": digest}]}
            )
    if libraries:
        entry["components"] = libraries
    return entry


def write_licences(tree: Path, root: Path, components: list[Component]) -> None:
    """Write ``LICENCES.txt``, a line a component, and the texts themselves under ``licences/``."""
    lines = [
        "The appliance itself is under the Apache License 2.0: licences/appliance/LICENSE.",
        "It contains the following, each under its own licence; the texts are in licences/NAME/.",
        "libgomp, libgfortran, libquadmath, libstdc++ and libgcc_s are under the GPL with GCC's runtime exception.",
        "libsndfile and what it contains of the LGPL are separate shared libraries, which may be replaced.",
        "",
    ]
    own = tree / TEXTS / "appliance"
    own.mkdir(parents=True)
    for name in ("LICENSE", "NOTICE"):
        shutil.copyfile(root / name, own / name)
    for component in components:
        lines.append(f"{component.name} {component.version}: {component.licence}")
        for label, source in component.texts:
            target = tree / TEXTS / component.name / label.replace("/", "_")
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, target)
    (tree / LICENCES).write_text("\n".join(lines) + "\n", "utf-8")
