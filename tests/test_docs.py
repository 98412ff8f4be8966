"""What is not documented fails here: settings, commands, metrics, recipes."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from appliance.cli import command
from appliance.config import Settings

ROOT = Path(__file__).parent.parent
DOCS = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md")}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("setting", Settings.__struct_fields__)
def test_every_setting_is_documented(setting: str) -> None:
    assert f"`{setting}`" in DOCS["configuration.md"]


def test_every_command_has_help_and_is_documented() -> None:
    assert isinstance(command, click.Group)
    context = click.Context(command)
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        assert found.help, name
        assert f"appliance {name}" in DOCS["operate.md"], name
        if isinstance(found, click.Group):
            for child in found.commands.values():
                assert child.help, (name, child.name)
                assert child.name is not None
                assert child.name in DOCS["operate.md"] + DOCS["packs.md"], (name, child.name)


def test_every_metric_is_documented() -> None:
    modules = (ROOT / "appliance/api/monitoring").glob("*.py")
    source = "".join(module.read_text() for module in modules)
    metrics = set(re.findall(r'"(appliance_[a-z_]+)"', source))
    assert len(metrics) > 20
    for metric in metrics:
        assert f"`{metric}`" in DOCS["operate.md"], metric


def test_every_recipe_is_documented() -> None:
    for recipe in (ROOT / "model_packs/recipes").glob("*.toml"):
        assert f"`{recipe.stem}`" in DOCS["packs.md"], recipe.stem


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
