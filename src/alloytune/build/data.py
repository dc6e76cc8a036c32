"""From a recipe to its rows: settings, rules, and those of what stages and views learn for themselves."""

from collections.abc import Collection
from pathlib import Path

import polars as pl

from alloytune.data.prepare import Dataset, prepare
from alloytune.data.read import peek_columns
from alloytune.data.rules import Rules
from alloytune.data.settings import DataSettings, SplitSettings
from alloytune.recipe.tasks import TASKS
from alloytune.recipe.types.data import Data
from alloytune.recipe.types.recipe import Recipe, path_of
from alloytune.tasks.task import find_task


def with_optional_columns(recipe: Recipe, table: pl.DataFrame | None = None) -> Recipe:
    """Name the columns that a task can do without, where the training table has them by the task's own names.

    `table` takes the place of the recipe's training file.
    """
    own = {
        learner: _with_optional(view := recipe.view(*learner), _columns_of(view.data))
        for learner, it in recipe.learners.items()
        if it.data is not None
    }
    data = _with_optional(recipe, _columns_of(recipe.data) if table is None else table.columns)
    return recipe.with_data(own).model_copy(update={"data": data})


def _with_optional(recipe: Recipe, columns: Collection[str]) -> Data:
    named, words = recipe.data.named, recipe.words
    optional = (words.form(named) or words.forms[0]).optional
    there = [key for key in optional if key in columns and key not in named and key not in named.values()]
    return recipe.data.model_copy(update={key: key for key in there})


def _columns_of(data: Data) -> Collection[str]:
    return peek_columns(Path(data.train), data.encoding) if data.train else ()


def build_data_settings(recipe: Recipe, place: str = "data") -> DataSettings:
    """Translate the recipe's `data`; `place` is where it stands."""
    data = recipe.data
    return DataSettings(
        train=_path(data.train),
        validation=_path(data.validation),
        test=_path(data.test),
        columns=recipe.columns,
        other_columns=tuple(form.required for form in recipe.words.forms),
        other_tasks=tuple((task, form.required) for task, words in TASKS.items() for form in words.forms),
        rules=build_rules(recipe),
        contradicts=recipe.words.contradicts,
        encoding=data.encoding,
        rows=data.rows,
        split=SplitSettings(data.split.validation, data.split.test, recipe.stratifies),
        repair=data.repair,
        near_duplicates=data.near_duplicates,
        seed=recipe.seed,
        place=place,
    )


def build_rules(recipe: Recipe, columns: Collection[str] | None = None) -> Rules:
    """Give what the recipe's task makes of rows; with these of its columns, all that are read where not given."""
    names = recipe.columns if columns is None else columns
    return find_task(recipe.task_name).rules(recipe.task_settings, names)


def prepare_others(recipe: Recipe) -> dict[str, Dataset]:
    """Read, clean and split the rows of stages and views that have their own; by what they learn."""
    return {
        name: prepare(build_data_settings(recipe.view(*learner), ".".join(map(str, (*path_of(learner), "data")))))
        for name, learner in recipe.learnings.items()
        if recipe.learners[learner].data is not None
    }


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
