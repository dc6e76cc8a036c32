"""Several labels in one cell of a table: a JSON list, or texts with a character between them."""

import json
from collections.abc import Sequence

import polars as pl

from alloytune.data.cells import as_string
from alloytune.data.rules import Sieved, sieve_by
from alloytune.tasks.labels import sort_naturally


def sift_labels(table: pl.DataFrame, separator: str | None) -> Sieved:
    """Write the column `labels` as JSON lists in natural order, each label once; drop what is no list."""
    if "labels" not in table.columns:
        return table, []
    found = [_split(cell, separator) for cell in table["labels"]]
    details = [one if isinstance(one, str) else None for one in found]
    lists = [sort_naturally(set(one)) for one in found if not isinstance(one, str)]
    kept, dropped = sieve_by(table, details, "labels are no list")
    return kept.with_columns(pl.Series("labels", [write_labels(one, None) for one in lists], dtype=pl.String)), dropped


def read_labels(cell: str) -> list[str]:
    """Read what `sift_labels` wrote."""
    labels: list[str] = json.loads(cell)
    return labels


def write_labels(labels: Sequence[str], separator: str | None) -> str:
    """Write labels into a cell."""
    return json.dumps(list(labels), ensure_ascii=False) if separator is None else separator.join(labels)


def _is_list(cell: str) -> bool:
    try:
        return isinstance(json.loads(cell), list)
    except ValueError:
        return False


def _split(cell: str, separator: str | None) -> list[str] | str:
    """Give the labels of a cell, or why there are none to read."""
    if separator is not None and not _is_list(cell):
        return [label for part in cell.split(separator) if (label := part.strip())]
    try:
        value = json.loads(cell)
    except ValueError:
        return f"{cell[:60]!r} is not JSON; write a list, or name the task's separator"
    if not isinstance(value, list) or any(isinstance(label, list | dict | None) for label in value):
        return f"{cell[:60]!r} is no list of texts"
    return [text for label in value if (text := (as_string(label) or "").strip())]
