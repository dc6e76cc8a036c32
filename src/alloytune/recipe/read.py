"""Read a recipe, and report every mistake in it at once.

A file becomes plain values with their places; values from the command line are put over them; pydantic checks each
value and `checks` the rules between them; paths become absolute.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from alloytune.errors import Problem, RecipeError
from alloytune.recipe.checks import check
from alloytune.recipe.found import find
from alloytune.recipe.overrides import apply
from alloytune.recipe.places import KeyPath, Mistake, Places, dotted, starts_with
from alloytune.recipe.repeat import as_written, expand, in_the_writing
from alloytune.recipe.sound import sound_part
from alloytune.recipe.types.adapter import Attach
from alloytune.recipe.types.data import Data
from alloytune.recipe.types.recipe import SPLITS, Recipe, WrittenRecipe, path_of
from alloytune.recipe.types.stage import WITHOUT_TRAINING, Stage
from alloytune.recipe.wording import mistakes_in, without_hidden
from alloytune.recipe.yaml_text import dump, load

MODEL_REMEDY = "'model' is missing; add `model: ...` to the recipe, or give --model"
STAGE_REMEDY = "'train' is missing; name the file with these rows"
TRAIN_REMEDY = "'data.train' is missing; add `data: {train: FILE}` to the recipe, or give the file on the command line"


@dataclass(frozen=True)
class ReadRecipe:
    """A recipe with what it was read from: the name shown in messages, the text and the overrides as given."""

    recipe: Recipe
    source: str
    text: str
    overrides: tuple[str, ...] = ()


def read_recipe(
    name_or_path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> ReadRecipe:
    """Read a shipped recipe by its name, or a file; raises RecipeError with every mistake found.

    `overrides` are texts such as `stages.0.rate=1e-5` or `stages.full.rate=1e-5`, their values in YAML. `defaults`
    are values of other options, nested as in a recipe; None is an option that was not given. Both replace what the
    file says. Paths in the file are relative to its folder; all others, and those of a shipped recipe, to the
    working directory.
    """
    found = find(name_or_path)
    value, places = load(found.text, found.source)
    recipe = _checked(value, places, found.folder, overrides, defaults or {})
    return ReadRecipe(recipe, found.source, found.text, tuple(overrides))


def recipe_read(
    value: Mapping[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
    source: str = "recipe",
) -> ReadRecipe:
    """Read a recipe built in code as strictly as a file, its text written for it; see `read_recipe`."""
    plain = (
        value.model_dump(mode="json", exclude_unset=True, by_alias=True) if isinstance(value, Recipe) else _plain(value)
    )
    if not isinstance(plain, dict):
        message = f"{type(value).__name__} is not a recipe; give a mapping or a Recipe"
        raise RecipeError([Problem(source, None, None, "", message)])
    recipe = _checked(plain, Places(source), Path.cwd(), overrides, defaults or {})
    return ReadRecipe(recipe, source, dump(plain), tuple(overrides))


def recipe_from(value: Mapping[str, Any] | Recipe, source: str = "recipe") -> Recipe:
    """Check a recipe built in code as strictly as one from a file; raises RecipeError with every mistake found."""
    return recipe_read(value, source=source).recipe


def require_complete(read: ReadRecipe, *, has_table: bool = False) -> None:
    """Raise RecipeError where a recipe does not yet say which model and which data it is for.

    Where it `has_table`, a table in memory takes the place of the training file.
    """
    missing = {"model": (read.recipe.model, MODEL_REMEDY), "data.train": (read.recipe.data.train, TRAIN_REMEDY)}
    if has_table:
        del missing["data.train"]
    for learner, own in read.recipe.learners.items():
        if own.data is not None:
            missing[f"{dotted(path_of(learner))}.data.train"] = (own.data.train, STAGE_REMEDY)
    problems = [Problem(read.source, None, None, key, text) for key, (value, text) in missing.items() if value is None]
    if problems:
        raise RecipeError(problems)


def resolved(recipe: Recipe) -> dict[str, Any]:
    """Give a recipe with every default filled in, ready for JSON; `recipe_from` reads it into the same recipe."""
    value = recipe.model_dump(mode="json", by_alias=True)
    value["stages"] = [_without_idle(stage) for stage in value["stages"]]
    return value


def _without_idle(stage: dict[str, Any]) -> dict[str, Any]:
    """Leave out what never happens, because reading refuses it."""
    idle = {"otherwise"} if stage["accept"] is None else set()
    idle |= set(stage) - WITHOUT_TRAINING if stage["train"] is None else set()
    return {key: value for key, value in stage.items() if key not in idle}


def _checked(
    value: dict[str, Any], places: Places, folder: Path, overrides: Sequence[str], defaults: Mapping[str, Any]
) -> Recipe:
    """Put the overrides over a recipe and check all of it."""
    value, problems = apply(value, places, _plain(defaults), overrides)
    recipe, origins, mistakes = _examine(value)
    problems += places.problems(mistakes)
    if problems or recipe is None:
        raise RecipeError(problems)

    def absolute(text: str, path: KeyPath) -> str:
        start = folder if places.origin(as_written(path, origins)) is None else Path.cwd()
        return os.path.abspath(start / Path(text).expanduser())

    return _with_task_defaults(_with_absolute_paths(recipe, absolute))


def _with_task_defaults(recipe: Recipe) -> Recipe:
    """Fill in what the task decides where nothing is said: metric, columns and whether splits keep shares."""
    own = {
        learner: _with_columns(recipe.view(*learner), test=0.0) for learner, it in recipe.learners.items() if it.data
    }
    update = {"metric": recipe.scored_by, "data": _with_columns(recipe)}
    return recipe.with_data(own).model_copy(update=update)


def _with_columns(recipe: Recipe, **split: float) -> Data:
    """Give the data with every column named; `split` overrides its shares."""
    stratify = recipe.data.split.stratify or recipe.stratifies
    changed = recipe.data.split.model_copy(update={"stratify": stratify, **split})
    return recipe.data.model_copy(update={**recipe.columns, "split": changed})


def _examine(value: dict[str, Any]) -> tuple[Recipe | None, list[KeyPath], list[Mistake]]:
    """Check values one by one and together; the recipe is None where a value is mistaken.

    Also gives, for every stage, its path in the recipe as it was written.
    """
    try:
        return _check_written(WrittenRecipe.model_validate(value))
    except ValidationError as error:
        every = mistakes_in(error, value)
    mistakes = without_hidden(every, value)
    sound, unsure = sound_part(value, every)
    if sound is not None:
        mistakes += [mistake for mistake in _check_written(sound)[2] if not _rests_on(mistake, unsure)]
    return None, [], mistakes


def _check_written(written: WrittenRecipe) -> tuple[Recipe, list[KeyPath], list[Mistake]]:
    """Write repeated blocks out and check the rules across fields."""
    recipe, origins = expand(written)
    return recipe, origins, in_the_writing(check(recipe), origins)


def _rests_on(mistake: Mistake, unsure: set[KeyPath]) -> bool:
    return any(starts_with(path, start) for path in (mistake.path, *mistake.about) for start in unsure)


def _with_absolute_paths(recipe: Recipe, absolute: Callable[[str, KeyPath], str]) -> Recipe:
    """Make the paths to files `absolute`, which is told where in the recipe each stands."""

    def with_files(data: Data, path: KeyPath) -> Data:
        files = {key: getattr(data, key) for key in SPLITS}
        changed = {key: absolute(text, (*path, key)) for key, text in files.items() if text is not None}
        return data.model_copy(update=changed)

    update: dict[str, Any] = {"data": with_files(recipe.data, ("data",))}
    if recipe.model is not None:
        at = absolute(recipe.model, ("model",))
        is_gguf = Path(at).suffix.lower() == ".gguf" and Path(at).is_file()
        is_path = recipe.model.startswith(("./", "../", "~", "/")) or Path(at).is_dir() or is_gguf
        update |= {"model": at} if is_path else {}
    own = {
        learner: with_files(it.data, (*path_of(learner), "data")) for learner, it in recipe.learners.items() if it.data
    }
    update["stages"] = stages = recipe.with_data(own).stages
    for index, stage in enumerate(stages):
        if any(attach.folder for attach in stage.attaches):
            stages[index] = _with_absolute_folders(stages[index], index, absolute)
    return recipe.model_copy(update=update)


def _with_absolute_folders(stage: Stage, index: int, absolute: Callable[[str, KeyPath], str]) -> Stage:
    """Make the paths to folders of adapters absolute."""

    def changed(attach: Attach, *place: int) -> Attach:
        path: KeyPath = ("stages", index, "attach", *place, "folder")
        return attach.model_copy(update={"folder": absolute(attach.folder, path)}) if attach.folder else attach

    if isinstance(stage.attach, list):
        several = [changed(attach, place) for place, attach in enumerate(stage.attach)]
        return stage.model_copy(update={"attach": several})
    return stage if stage.attach is None else stage.model_copy(update={"attach": changed(stage.attach)})


def _plain(value: Any) -> Any:
    """Turn mappings, tuples and paths of Python code into what a file could hold."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
