"""What a table must have: the columns named, each once, and rows."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import polars as pl

from alloytune.errors import InputError

MOST_SHOWN = 40  # characters of a column's name; a longer one is rather a cell


def add_stand_ins(table: pl.DataFrame, columns: Mapping[str, str], stand_ins: Mapping[str, str]) -> pl.DataFrame:
    """Give a table the columns that it lacks from those that stand in for them; one called otherwise is not replaced.

    `columns` are the names in the table, by the task's own names.
    """
    for name, other in stand_ins.items():
        if columns.get(name) == name and name not in table.columns and columns.get(other) in table.columns:
            table = table.with_columns(pl.col(columns[other]).alias(name))
    return table


def add_optional(table: pl.DataFrame, columns: Mapping[str, str], optional: Collection[str]) -> pl.DataFrame:
    """Give a table, without a cell in any row, the columns that it lacks and can do without."""
    lacking = [theirs for ours, theirs in columns.items() if ours in optional and theirs not in table.columns]
    return table.with_columns(pl.lit(None, pl.String).alias(name) for name in lacking)


def require_columns(table: pl.DataFrame, where: Path | str, columns: Sequence[str]) -> None:
    """Raise an InputError unless the table has every one of the columns."""
    for column in columns:
        if column not in table.columns:
            raise InputError(str(where), f'there is no column "{column}"', _which_columns(column, table.columns))


def require_rows(table: pl.DataFrame, where: Path | str) -> None:
    """Raise an InputError if the table has no row."""
    if table.height == 0:
        raise InputError(str(where), "there are no rows", "give a table with examples")


def require_unique(where: Path | str, columns: Sequence[str]) -> None:
    """Raise an InputError if a name heads two columns."""
    for column in columns:
        if columns.count(column) > 1:
            raise InputError(
                str(where),
                f'{columns.count(column)} columns are called "{column}"',
                "rename or remove all but one",
            )


def nearest_column(column: str, columns: Sequence[str]) -> str | None:
    """Give the column that is called most alike, if any is alike."""
    by_folded = {name.casefold(): name for name in columns}
    nearest = difflib.get_close_matches(column.casefold(), by_folded, n=1)
    return by_folded[nearest[0]] if nearest else None


def _which_columns(column: str, columns: Sequence[str]) -> str:
    nearest = nearest_column(column, columns)
    hint = f'did you mean "{nearest}"? ' if nearest else ""
    names = ", ".join(f'"{name if len(name) <= MOST_SHOWN else name[:MOST_SHOWN] + "…"}"' for name in columns)
    looks_like_a_row = any(len(name) > MOST_SHOWN for name in columns)
    return f"{hint}the columns are: {names}{'; is the line that names them missing?' if looks_like_a_row else ''}"
