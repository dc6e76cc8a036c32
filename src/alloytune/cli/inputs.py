"""What a command is given: recipe, table and options, refused before torch is loaded where they cannot be used."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alloytune.errors import InputError

if TYPE_CHECKING:
    import polars as pl

    from alloytune.recipe.read import ReadRecipe


def read_complete(
    recipe: str,
    model: str | None,
    data: str | None,
    validation: str | None,
    test: str | None,
    text: str | None,
    text_pair: str | None,
    label: str | None,
    overrides: list[str] | None,
    seed: int | None,
) -> "ReadRecipe":
    """Read a recipe with the command line's options over it; refuse one that lacks something before torch is loaded."""
    from alloytune.data.read import require_file
    from alloytune.recipe.read import read_recipe, require_complete

    chosen = given_of(train=data, validation=validation, test=test, text=text, text_pair=text_pair, label=label)
    read = read_recipe(recipe, overrides or (), given_of(model=model, seed=seed, data=chosen or None))
    require_complete(read)
    for file in read.recipe.files.values():
        require_file(Path(file))
    return read


def read_for(run: Path, table: Path, encoding: str) -> "pl.DataFrame":
    """Read a table for a finished run; refuse what is not there before torch is loaded."""
    from alloytune.data.read import read_table
    from alloytune.record.folder import RunFolder

    RunFolder.open(run).read("results.json")
    return read_table(table, encoding)


def read_columns(given: list[str] | None) -> dict[str, str]:
    """Read what columns are called, as in tokens=words; raises InputError for what says no such thing."""
    columns = {}
    for text in given or ():
        key, equals, name = text.partition("=")
        if not (key and equals and name):
            raise InputError("--column", f"{text!r} names no column", "write KEY=NAME, such as tokens=words")
        columns[key] = name
    return columns


def given_of(**options: Any) -> dict[str, Any]:
    """Give the options that were given."""
    return {key: value for key, value in options.items() if value is not None}


def require_nothing_beside_resume(recipe: str | None, options: Mapping[str, object]) -> None:
    """Raise an InputError that names what --resume would ignore."""
    given = [repr(recipe)] if recipe is not None else []
    given += [option for option, value in options.items() if value not in (None, [])]
    if given:
        raise InputError("--resume", "the run has its recipe already", f"leave {', '.join(given)} away")
