"""Recipes: strict, pinned, and named by what they give."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from model_packs.errors import RecipeError
from model_packs.recipe import QUANTISING_KINDS, load_recipes, parse_recipe, read_recipe, recipe_sha256
from tests.model_packs.sample import recipe_text

TEXT = recipe_text(b"", kind="onnx-files")


def test_shipped_recipes_are_valid_and_their_builders_are_there() -> None:
    recipes = load_recipes()
    assert "smollm2-135m-instruct" in recipes
    for recipe in recipes.values():
        assert len(recipe_sha256(recipe)) == 64


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "sample"', 'name = "../x"', "name"),
        ('kind = "onnx-files"', 'kind = "magic"', "unknown kind"),
        ('task = "ocr"', 'task = "poetry"', "task"),
        ("created = 1", "created = 0", "created"),
        ("created = 1", "created = 1\nsurprise = 1", "surprise"),
        ('license = "CC0-1.0"\nmembers', "members", "license"),
        ('sha256 = "', 'sha256 = "x', "sha256"),
        ('filename = "', 'filename = "../', "filename"),
        ('"sample_weights/model.bin"', '"/etc/passwd"', "members"),
        ('"sample_weights/model.bin"', '"a/../../b"', "members"),
        ('"model.bin" =', '"../model.bin" =', "members"),
        ("[[source]]", "[source]", "source"),
        ("[[source]]", "[quality]\nloss = {}\n[[source]]", "no bound"),
        ("[[source]]", "[quality]\nloss = { most = 1 }\n[[source]]", "most"),
    ],
)
def test_anything_unexpected_is_refused(old: str, new: str, message: str) -> None:
    assert old in TEXT
    with pytest.raises(RecipeError, match=message):
        parse_recipe(TEXT.replace(old, new, 1))


def test_two_sources_may_not_give_the_same_member() -> None:
    source = TEXT[TEXT.index("[[source]]") :]
    with pytest.raises(RecipeError, match="same name"):
        parse_recipe(TEXT + source)


def test_two_members_may_not_be_the_same_file_of_a_source() -> None:
    twice = '"model.bin" = "sample_weights/model.bin", "copy.bin" = "sample_weights/model.bin"'
    with pytest.raises(RecipeError, match="same path"):
        parse_recipe(TEXT.replace('"model.bin" = "sample_weights/model.bin"', twice))


def test_a_model_may_come_in_many_slices_but_not_in_any_number() -> None:
    head, source = TEXT[: TEXT.index("[[source]]")], TEXT[TEXT.index("[[source]]") :]
    slices = [source.replace("model.bin", f"model.bin.part{number}") for number in range(65)]
    assert len(parse_recipe(head + "".join(slices[:64])).source) == 64
    with pytest.raises(RecipeError, match="source"):
        parse_recipe(head + "".join(slices))


@pytest.mark.parametrize("kind", sorted(QUANTISING_KINDS))
def test_nothing_is_quantised_without_a_limit_on_the_loss(kind: str) -> None:
    text = recipe_text(b"", kind=kind)
    with pytest.raises(RecipeError, match="quality"):
        parse_recipe(text)
    assert parse_recipe(f"{text}\n[quality]\nloss = {{ max = 1.0 }}").kind == kind


def test_recipe_is_named_as_its_file(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text(TEXT)
    with pytest.raises(RecipeError, match="other"):
        read_recipe(tmp_path / "other.toml")


def test_hash_changes_with_the_recipe_and_the_builder_but_not_with_default() -> None:
    recipe = parse_recipe(TEXT)
    first = recipe_sha256(recipe, "1")
    assert recipe_sha256(parse_recipe(TEXT + "\n# a comment\n"), "1") == first
    assert recipe_sha256(msgspec.structs.replace(recipe, default=True), "1") == first
    others = {
        recipe_sha256(recipe, "2"),
        recipe_sha256(msgspec.structs.replace(recipe, description="Else."), "1"),
        recipe_sha256(msgspec.structs.replace(recipe, options={"loss": 1}), "1"),
        recipe_sha256(parse_recipe(TEXT.replace('sha256 = "e', 'sha256 = "f')), "1"),
    }
    assert first not in others
    assert len(others) == 4
