"""From a recipe to its rows: settings, rules, and those of what stages and views learn for themselves."""

from collections.abc import Collection
from pathlib import Path

from alloytune.data.prepare import Dataset, prepare
from alloytune.data.rules import Rules
from alloytune.data.settings import DataSettings, SplitSettings
from alloytune.recipe.types.recipe import Recipe, path_of
from alloytune.tasks.task import find_task


def build_data_settings(recipe: Recipe, place: str = "data") -> DataSettings:
    """Translate the recipe's `data`; `place` is where it stands."""
    data = recipe.data
    return DataSettings(
        train=_path(data.train),
        validation=_path(data.validation),
        test=_path(data.test),
        columns=recipe.columns,
        other_columns=tuple(form.required for form in recipe.words.forms),
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
