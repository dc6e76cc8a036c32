"""The user's own recipes are found by name, and none of them hides another."""

import os
from pathlib import Path

import pytest

from alloytune.errors import InputError, RecipeError
from alloytune.recipe.catalogue import own
from alloytune.recipe.own import own_recipes, usual_folder
from alloytune.recipe.read import read_recipe

RECIPE = "data: {train: table.csv}\nstages: [{name: only, train: head}]\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder of the user's recipes, with one in it."""
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "quick.yaml").write_text(RECIPE)
    monkeypatch.setenv("ALLOYTUNE_RECIPES", str(tmp_path / "one"))
    return tmp_path / "one"


def test_found_by_name(folder: Path) -> None:
    (folder / "notes.txt").write_text("no recipe")
    read = read_recipe("quick")
    assert read.source == str(folder / "quick.yaml")
    assert read.recipe.data.train == str(folder / "table.csv")
    with pytest.raises(RecipeError, match="did you mean your recipe 'quick'"):
        read_recipe("quik")


def test_one_that_cannot_be_used_is_listed_with_the_reason(folder: Path) -> None:
    (folder / "broken.yaml").write_text("stages: [{name: only, trian: head}]\n")
    (folder / "torn.yaml").write_text("stages: [")
    listed = {entry.name: entry.summary for entry in own()}
    assert listed["quick"] == "It says nothing about itself."
    assert listed["broken"].startswith("It cannot be used: ")
    assert "'train'" in listed["broken"]
    assert listed["torn"].startswith("It cannot be used: ")


def test_several_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = folder.parent / "two"
    other.mkdir()
    (other / "slow.yml").write_text(RECIPE)
    monkeypatch.setenv("ALLOYTUNE_RECIPES", os.pathsep.join([str(folder), str(other)]))
    assert own_recipes() == {"quick": folder / "quick.yaml", "slow": other / "slow.yml"}


@pytest.mark.parametrize(("name", "other"), [("full.yaml", "the shipped recipe"), ("quick.yml", "quick.yaml")])
def test_a_clash_names_both(folder: Path, name: str, other: str) -> None:
    (folder / name).write_text(RECIPE)
    with pytest.raises(InputError, match=f"{other}.*{name}|{name}.*{other}"):
        read_recipe("full")


def test_a_folder_that_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOYTUNE_RECIPES", str(folder / "absent"))
    with pytest.raises(InputError, match=r"ALLOYTUNE_RECIPES: there is no folder '.*absent'"):
        own_recipes()


def test_the_usual_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALLOYTUNE_RECIPES")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert own_recipes() == {}
    usual_folder().mkdir(parents=True)
    (usual_folder() / "quick.yaml").write_text(RECIPE)
    assert list(own_recipes()) == ["quick"]
