"""Every route and who may call it: as the application has it, and as docs/permissions.md says.

``python -m tests.api.route_table`` writes the table of the page anew; read what changed before you commit it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from litestar import Litestar
from litestar.routes import HTTPRoute

from appliance.api.dialect import STRICT, UNION, Dialect
from appliance.api.routes import routes
from appliance.config import Settings

PAGE = Path(__file__).parent.parent.parent / "docs/permissions.md"
HEAD = "| method | path | under | who |\n|---|---|---|---|\n"
ROOT = "the root"
WHO = {"public": "everyone", "key": "any key"}
_ROW = re.compile(r"^\| ([A-Z]+) \| `([^`]+)` \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


class Entry(NamedTuple):
    """A route as it is registered; ``who`` is "everyone", "any key", or a permission with backticks."""

    method: str
    path: str
    who: str

    @property
    def access(self) -> str:
        """The word that handlers have for it."""
        words = {shown: word for word, shown in WHO.items()}
        return words.get(self.who, self.who.strip("`"))


def registered() -> set[Entry]:
    """Return every route of the application, but for the framework's own answers to OPTIONS."""
    app = Litestar(route_handlers=routes(Settings()), openapi_config=None)
    found: set[Entry] = set()
    for route in app.routes:
        assert isinstance(route, HTTPRoute)
        for method, (handler, _) in route.route_handler_map.items():
            if method != "OPTIONS":
                access = handler.opt["access"]
                found.add(Entry(str(method), route.path_format, WHO.get(access, f"`{access}`")))
    return found


def documented() -> set[Entry]:
    """Return every route that the page lists."""
    found: set[Entry] = set()
    for method, path, under, who in _ROW.findall(PAGE.read_text()):
        for place in under.split(", "):
            found.add(Entry(method, path if place == ROOT else place.strip("`") + path, who))
    return found


def table(entries: set[Entry]) -> str:
    """Return the page's table: one row for the mounts on which a route stands."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for method, path, who in sorted(entries):
        prefix = next((each for each in _prefixes() if path.startswith(each + "/")), "")
        rows.setdefault((path.removeprefix(prefix), method, who), []).append(
            f"`{prefix}`" if prefix else ROOT
        )
    lines = [
        f"| {method} | `{path}` | {', '.join(sorted(under, key=len))} | {who} |"
        for (path, method, who), under in sorted(rows.items())
    ]
    return HEAD + "\n".join(lines) + "\n"


def _prefixes() -> list[str]:
    """Return where the mounts stand, the longest first."""
    dialects: tuple[Dialect, ...] = (UNION, *STRICT)
    return sorted({place for each in dialects for place in (each.prefix, each.platform) if place}, key=len)[
        ::-1
    ]


if __name__ == "__main__":
    text = PAGE.read_text()
    start = text.index(HEAD)
    PAGE.write_text(text[:start] + table(registered()))
