"""The Python call: `alloytune.tune(data, model=..., recipe="hybrid")`."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from alloytune import run
from alloytune.data.parse import parse_table
from alloytune.errors import InputError
from alloytune.models.load import quiet
from alloytune.recipe.read import read_recipe, recipe_read
from alloytune.recipe.types.recipe import Recipe
from alloytune.record.folder import default_output
from alloytune.terminal import shown_on
from alloytune.use import Tuned, load_tuned
from alloytune.watch import Watcher


def tune(
    data: Any,
    model: str | None = None,
    recipe: str | Path | Mapping[str, Any] | Recipe = "hybrid",
    *,
    output: str | Path | None = None,
    seed: int | None = None,
    overrides: str | Sequence[str] = (),
    watcher: Watcher | None = None,
    **columns: Any,
) -> Tuned:
    """Fine-tune a model on a table and give the result.

    `data` is a file's path, or a table: polars or pandas data frame, list of dicts, dict of lists. `recipe` is a
    shipped recipe's name, a file, a mapping, or a Recipe. `columns` are keys of the recipe's `data`, such as
    `text="tweet", label="mood"`; `validation` and `test` among them may be tables as well. `overrides` are values over
    those of the recipe, as the command line's `--set` takes them: `["stages.full.rate=1e-4"]`. The run is shown on
    standard error as the command line shows it; `watcher` takes the place of that, and a plain `Watcher()` says
    nothing. Raises InputError for what cannot be used, RecipeError with every mistake at once.
    """
    quiet()
    overrides = [overrides] if isinstance(overrides, str) else overrides
    columns = {key: str(value) if isinstance(value, Path) else value for key, value in columns.items()}
    splits = {"train": str(data) if isinstance(data, Path) else data}
    splits |= {split: columns.pop(split) for split in ("validation", "test") if split in columns}
    tables = {split: parse_table(one) for split, one in splits.items() if not isinstance(one, str | None)}
    settings = columns | {split: one for split, one in splits.items() if split not in tables}
    given: dict[str, Any] = {"data": settings} if settings else {}
    given |= {key: value for key, value in {"model": model, "seed": seed}.items() if value is not None}
    read = (
        read_recipe(str(recipe), overrides, given)
        if isinstance(recipe, str | Path)
        else recipe_read(recipe, overrides, given)
    )
    if read.recipe.model is None:
        raise InputError("model", "no model was named", 'give one, such as model="bert-base-uncased"')
    where = Path(output) if output else default_output("table" if "train" in tables else str(data), datetime.now())
    with nullcontext(watcher) if watcher else shown_on(Console(stderr=True)) as told:
        folder = run.start(read, where, told, tables)
    return load_tuned(folder.path)
