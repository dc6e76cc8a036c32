"""The user's own recipes: files in a folder of theirs, called by name as the shipped ones are."""

import os
from pathlib import Path

from alloytune.errors import InputError
from alloytune.recipe.shipped import shipped_names

VARIABLE = "ALLOYTUNE_RECIPES"
SUFFIXES = (".yaml", ".yml")


def usual_folder() -> Path:
    """Give the folder that is looked into where the variable is not set, such as ~/.config/alloytune/recipes."""
    from typer import get_app_dir

    return Path(get_app_dir("alloytune")) / "recipes"


def own_recipes() -> dict[str, Path]:
    """Give the user's recipes by name; raises InputError where one bears the name of another, or of a shipped one."""
    found: dict[str, Path] = {}
    for file in (file for folder in _folders() for file in recipes_in(folder)):
        if file.stem in shipped_names() or file.stem in found:
            other = found.get(file.stem, "the shipped recipe")
            raise InputError("recipes", f"{file} and {other} are both called {file.stem!r}", "rename your file")
        found[file.stem] = file
    return dict(sorted(found.items()))


def recipes_in(folder: Path) -> list[Path]:
    """List the recipe files in a folder, by name; none where it cannot be read."""
    try:
        return sorted(entry for entry in folder.iterdir() if entry.suffix in SUFFIXES)
    except OSError:
        return []


def _folders() -> list[Path]:
    given = os.environ.get(VARIABLE)
    if given is None:
        return [usual_folder()]
    folders = [Path(part).expanduser() for part in given.split(os.pathsep) if part]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(VARIABLE, f"there is no folder {str(folder)!r}", "make it, or change the variable")
    return folders
