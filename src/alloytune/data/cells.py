"""Cells of any type as strings, so that a label is the same word whatever kind of file it came from."""

import ast
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from alloytune.data.columns import require_unique

TRUTHS = ("true", "false", "True", "False", "TRUE", "FALSE")
PANDAS_MISSING = ("NAType", "NaTType")  # told by name, since pandas is no dependency


def as_string(value: object) -> str | None:
    """Give a cell as a string: `1.0` as "1" (a nullable integer column is often floats), NaN, NA and NaT as missing.

    Lists, however they are held, and mappings become JSON.
    """
    match value:
        case None:
            return None
        case str():
            # JSON can hold half of a surrogate pair, which no table can.
            return value.encode("utf-8", "replace").decode("utf-8")
        case bool():
            return "true" if value else "false"
        case float():
            if math.isnan(value):
                return None
            return str(int(value)) if value.is_integer() else str(value)
        case list() | tuple() | dict():
            return as_string(json.dumps(value, ensure_ascii=False, default=_as_json))
        case set() | frozenset() | np.ndarray():
            return as_string(_as_json(value))
        case bytes():
            return value.decode("utf-8", "replace")
        case np.generic():
            return as_string(value.item())
        case _ if type(value).__name__ in PANDAS_MISSING:
            return None
        case _:
            return str(value)


def read_json(cell: str) -> Any:
    """Read a cell that holds JSON, or a list or mapping as Python (and so pandas) writes it into CSV.

    Raises ValueError for other text, such as what numpy writes: ['a' 'b'] would be one text to Python.
    """
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        if not cell.lstrip().startswith(("[", "{")):
            raise ValueError("it is no list and no mapping") from None
    try:
        value = ast.literal_eval(cell.strip())
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(str(error)) from None
    if "".join(repr(value).split()) != "".join(cell.split()):
        raise ValueError("it is not what Python writes of a value")
    return value


def as_strings(table: pl.DataFrame, where: Path | str = "table") -> pl.DataFrame:
    """Give every column of a table as strings, and the columns' names without blanks around them."""
    names = [name.strip() for name in table.columns]
    require_unique(where, names)
    columns = zip(names, table.get_columns(), strict=True)
    return pl.DataFrame([_column_as_strings(column).alias(name) for name, column in columns])


def written_alike(tables: Sequence[pl.DataFrame], column: str) -> list[pl.DataFrame]:
    """Give 1.0 as 1 in a column, if all tables hold whole numbers in it: pandas writes so beside a missing one.

    And True and TRUE as true, if they hold nothing but truth values: pandas and R write them so into CSV.
    """
    cells = [table[column].drop_nulls() for table in tables if column in table.columns]
    if not sum(map(len, cells)):
        return list(tables)
    if all(each.str.contains(r"^-?\d+(\.0)?$").all() for each in cells):
        alike = pl.col(column).str.strip_suffix(".0")
    elif all(each.is_in(TRUTHS).all() for each in cells):
        alike = pl.col(column).str.to_lowercase()
    else:
        return list(tables)
    return [table.with_columns(alike) if column in table.columns else table for table in tables]


def _as_json(value: object) -> object:
    """Give what JSON has no form of as what it has: arrays are what pandas makes of the lists in Parquet."""
    match value:
        case np.ndarray() | np.generic():
            return value.tolist()
        case set() | frozenset():
            return sorted(value, key=str)
        case _:
            return as_string(value)


def _is_moment(kind: pl.DataType) -> bool:
    """Tell dates and times, which polars writes as strings, from durations, which it does not."""
    return kind.is_temporal() and kind != pl.Duration


def _column_as_strings(column: pl.Series) -> pl.Series:
    if column.dtype == pl.String:
        return column
    if column.dtype.is_integer() or _is_moment(column.dtype) or column.dtype in (pl.Boolean, pl.Categorical):
        return column.cast(pl.String)
    return pl.Series(column.name, [as_string(value) for value in column.to_list()], dtype=pl.String)
