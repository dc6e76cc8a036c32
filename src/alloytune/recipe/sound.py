"""The sound part of a broken recipe, so that rules across fields can be checked beside its other mistakes."""

import copy
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from alloytune.recipe.places import KeyPath, Mistake
from alloytune.recipe.types.recipe import WrittenRecipe
from alloytune.recipe.wording import ABSENT, look_up


def sound_part(value: Any, mistakes: Iterable[Mistake]) -> tuple[WrittenRecipe | None, set[KeyPath]]:
    """Give the recipe without its mistakes, and the paths that are not as they were given.

    What must be there is filled in; None where nothing sound is left.
    """
    left = copy.deepcopy(value)
    unsure: set[KeyPath] = set()
    for mistake in sorted(mistakes, key=lambda mistake: len(mistake.path), reverse=True):
        unsure |= {mistake.path, *mistake.hides}
        unsure.add(_remove(left, mistake.path))
    if not isinstance(left, dict):
        return None, unsure
    _fill(left)
    try:
        return WrittenRecipe.model_validate(left), unsure
    except ValidationError:
        return None, unsure


def _remove(value: Any, path: KeyPath) -> KeyPath:
    """Take a value out; a missing one takes its mapping with it, unless `_fill` will give it.

    Returns the path of what is unsure now: the mapping, where nothing else was in it.
    """
    parent, last = path[:-1], path[-1:]
    holder = look_up(value, parent)
    is_filled = parent == () or parent[-1] == "repeat" or (parent[-2:-1] == ("stages",) and last == ("name",))
    if look_up(value, path) is ABSENT:
        return path if is_filled or holder is ABSENT else _remove(value, parent)
    if isinstance(holder, list):
        holder[int(last[0])] = {}
    elif isinstance(holder, dict):
        del holder[last[0]]
        if not holder:
            return parent
    return path


def _fill(value: dict[str, Any]) -> None:
    """Give what a recipe, or a block that repeats, cannot be without."""
    if not isinstance(value.get("stages"), list) or not value["stages"]:
        value["stages"] = [{}]
    for index, stage in enumerate(value["stages"]):
        if isinstance(stage.get("repeat"), dict):
            stage["repeat"].setdefault("times", 1)
            _fill(stage["repeat"])
        else:
            stage.setdefault("name", f"stage-{index + 1}-without-name")
