"""Sources and recipes for the builder's tests, and a kind of pack that costs nothing to build."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

from appliance.packs.manifest import Quality
from model_packs.build import PackParts
from model_packs.recipe import Recipe

PAYLOAD = b"weights " * 1000
WHEEL = "sample_weights-1.0-py3-none-any.whl"


def build(recipe: Recipe, members: dict[str, Path], out: Path) -> PackParts:
    """The builder of kind ``sample``: copies its one member, and loses what the options say."""
    (out / "model.bin").write_bytes(members["model.bin"].read_bytes())
    loss = float(recipe.options.get("loss", 0.01))
    return PackParts(
        memory_bytes=17,
        quality=[Quality(metric="loss", value=loss, reference=0.5, sample="none")] if loss >= 0 else [],
    )


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def wheel(files: dict[str, bytes]) -> bytes:
    """Return a wheel that holds ``files``, enough of one for an index."""
    metadata = b"Metadata-Version: 2.1\nName: sample-weights\nVersion: 1.0\n"
    content = {
        **files,
        "sample_weights-1.0.dist-info/METADATA": metadata,
        "sample_weights-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "sample_weights-1.0.dist-info/RECORD": b"",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def sdist(files: dict[str, bytes]) -> bytes:
    """Return a ``.tar.gz`` with ``files``."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def recipe_text(content: bytes, *, filename: str = WHEEL, options: str = "", kind: str = "sample") -> str:
    """Return a recipe of kind ``sample`` over the distribution ``content``."""
    return f"""
name = "sample"
kind = "{kind}"
default = false
version = "2"
task = "ocr"
engine = "onnx"
description = "Nothing."
license = "CC0-1.0"
owned_by = "tests"
created = 1

[[source]]
package = "sample-weights"
version = "1.0"
filename = "{filename}"
sha256 = "{sha256(content)}"
license = "CC0-1.0"
members = {{ "model.bin" = "sample_weights/model.bin" }}
{options}
"""
