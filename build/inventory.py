"""Which components the files of the frozen tree come from: Python packages, Python itself, Debian's libraries."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Literal

import msgspec

from build.errors import FreezeError

Kind = Literal["python-package", "python", "debian-package"]
LEGAL = re.compile(
    r"(^|/)(licen[cs]e|copying|notice|authors|copyright)[^/]*$|/(licenses|sboms)/", re.IGNORECASE
)
MOST_LICENCE = 60  # characters; longer "licences" are whole texts


# Where the metadata says too little or speaks of the whole source package: read from the licence files.
READ_BY_HAND = {
    "pyinstaller": "GPL-2.0-or-later WITH Bootloader-exception",
    "pysqlite3": "Zlib",
    "libbz2-1.0": "bzip2-1.0.6",
    "libffi8": "MIT",
    "libgcc-s1": "GPL-3.0-or-later WITH GCC-exception-3.1",
    "libstdc++6": "GPL-3.0-or-later WITH GCC-exception-3.1",
    "liblzma5": "0BSD",
    "libssl3": "Apache-2.0",
    "libuuid1": "BSD-3-Clause",
    "zlib1g": "Zlib",
}
# Never shipped: the GPL and AGPL, but for what an exception lets programs be linked with.
FORBIDDEN = re.compile(r"\bA?GPL|GNU (Affero )?General Public", re.IGNORECASE)


class Component(msgspec.Struct, frozen=True, kw_only=True):
    """One part of the tree: what it is, its licence as it says itself, its legal texts, its files in the tree."""

    kind: Kind
    name: str
    version: str
    licence: str
    texts: list[tuple[str, Path]]
    files: list[str]


def components(origins: Path, root: Path) -> list[Component]:
    """Return the components behind the pairs (target, source) of ``origins``, by kind and name.

    Raises FreezeError when a file's origin is unknown: nothing unlisted is shipped.
    """
    owners = _owners()
    base = Path(sys.base_prefix).resolve()
    files: dict[tuple[Kind, str], list[str]] = {}
    packages: dict[str, Distribution] = {}
    for target, source in json.loads(origins.read_text()):
        path = Path(source)
        resolved = path.resolve()
        owner = owners.get(str(resolved)) or owners.get(str(path))
        if owner is not None:
            key: tuple[Kind, str] = ("python-package", canonical(owner.metadata["Name"]))
            packages[key[1]] = owner
        elif resolved.is_relative_to(root) or "/PyInstaller/" in source or target == "module _pyi_rth_utils":
            continue  # our own, and the bootloader's modules, which are listed once
        elif resolved.is_relative_to(base) or target.endswith("base_library.zip"):
            key = ("python", "cpython")
        else:
            key = ("debian-package", debian_package(resolved))
        files.setdefault(key, [])
        if not target.startswith("module "):
            files[key].append(f"_internal/{target}")
    bootloader = next(d for d in distributions() if canonical(d.metadata["Name"]) == "pyinstaller")
    packages["pyinstaller"] = bootloader
    files[("python-package", "pyinstaller")] = ["appliance"]
    made = [_component(kind, name, sorted(listed), packages) for (kind, name), listed in files.items()]
    for component in made:
        if FORBIDDEN.search(component.licence) and " WITH " not in component.licence:
            raise FreezeError(f"{component.name} is under {component.licence}: not to be shipped")
    return sorted(made, key=lambda component: (component.kind, component.name))


def canonical(name: str) -> str:
    """Return a package's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _owners() -> dict[str, Distribution]:
    owners: dict[str, Distribution] = {}
    for distribution in distributions():
        for file in distribution.files or ():
            located = Path(str(distribution.locate_file(file)))
            owners[str(located)] = owners[str(located.resolve())] = distribution
    return owners


def _component(kind: Kind, name: str, files: list[str], packages: dict[str, Distribution]) -> Component:
    if kind == "python":
        version = ".".join(map(str, sys.version_info[:3]))
        text = (
            Path(sys.base_prefix)
            / "lib"
            / f"python{sys.version_info[0]}.{sys.version_info[1]}"
            / "LICENSE.txt"
        )
        return Component(
            kind=kind, name=name, version=version, licence="PSF-2.0", texts=_present(text), files=files
        )
    if kind == "debian-package":
        version = _output("dpkg-query", "-W", "-f", "${Version}", name)
        text = Path("/usr/share/doc") / name / "copyright"
        return Component(
            kind=kind,
            name=name,
            version=version,
            licence=READ_BY_HAND.get(name) or _debian_licence(text),
            texts=_present(text),
            files=files,
        )
    distribution = packages[name]
    legal = [
        (str(file).partition("/")[2] or str(file), Path(str(distribution.locate_file(file))))
        for file in distribution.files or ()
        if LEGAL.search(str(file)) and not str(file).endswith((".py", ".pyc", ".so"))
    ]
    return Component(
        kind=kind,
        name=name,
        version=distribution.version,
        licence=READ_BY_HAND.get(name) or package_licence(distribution),
        texts=sorted((label, path) for label, path in legal if path.is_file()),
        files=files,
    )


def package_licence(distribution: Distribution) -> str:
    """Return what a package's metadata says of its licence: the expression, the classifiers, or the field."""
    metadata = distribution.metadata.json
    classifiers = metadata.get("classifier", [])
    named = [line.split(" :: ")[-1] for line in classifiers if line.startswith("License")]
    field = next(iter(str(metadata.get("license", "")).strip().splitlines()), "")[:MOST_LICENCE]
    return str(metadata.get("license_expression") or ", ".join(named) or field or "see its licence text")


def debian_package(path: Path) -> str:
    """Return the Debian package that a file belongs to. Raises FreezeError when it belongs to none."""
    # Where /lib is a link into /usr, packages may still list the file under /lib.
    for candidate in (path, Path("/") / path.relative_to("/usr") if path.is_relative_to("/usr") else path):
        answer = subprocess.run(["dpkg", "-S", str(candidate)], capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            return answer.stdout.split(":")[0]
    raise FreezeError(f"{path} goes into the tree and belongs to no package: its licence is unknown")


def _debian_licence(copyright_file: Path) -> str:
    try:
        text = copyright_file.read_text("utf-8", "replace")
    except OSError:
        return "see its copyright file"
    names = sorted({match[1].strip() for match in re.finditer(r"^License:[ \t]*(\S.*)$", text, re.MULTILINE)})
    return ", ".join(names) or "see its copyright file"


def _present(path: Path) -> list[tuple[str, Path]]:
    return [(path.name, path)] if path.is_file() else []


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
