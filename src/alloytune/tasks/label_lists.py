"""Several labels in one cell of a table: a JSON list, or texts with a character between them."""

import json
from collections.abc import Iterable, Sequence

import polars as pl

from alloytune.data.cells import as_string, read_json
from alloytune.data.rules import Sieved, sieve_by
from alloytune.tasks.labels import sort_naturally


def sift_labels(table: pl.DataFrame, separator: str | None) -> Sieved:
    """Write the column `labels` as JSON lists in natural order, each label once; drop what is no list."""
    if "labels" not in table.columns:
        return table, []
    found = [_split(cell, separator) for cell in table["labels"]]
    details = [one if isinstance(one, str) else None for one in found]
    lists = [_write(one) for one in found if not isinstance(one, str)]
    kept, dropped = sieve_by(table, details, "labels are no list")
    return kept.with_columns(pl.Series("labels", lists, dtype=pl.String)), dropped


def read_labels(cell: str) -> list[str]:
    """Read what `sift_labels` wrote."""
    labels: list[str] = json.loads(cell)
    return labels


def unite_labels(cells: Sequence[str]) -> str:
    """Give the labels of several cells as those of one."""
    return _write(label for cell in cells for label in read_labels(cell))


def num_switches(cells: Iterable[str | None], separator: str | None) -> int:
    """Give how many labels there are where every cell has a 0 or a 1 for each, which are read as labels; else 0."""
    found = [_split(cell, separator) for cell in cells if cell]
    lists = [one for one in found if not isinstance(one, str)]
    lengths = {len(one) for one in lists}
    if len(lengths) != 1 or not {label for one in lists for label in one} <= {"0", "1"}:
        return 0
    (length,) = lengths
    return length if length > 1 else 0


def _write(labels: Iterable[str]) -> str:
    return json.dumps(sort_naturally(set(labels)), ensure_ascii=False)


def _split(cell: str, separator: str | None) -> list[str] | str:
    """Give the labels of a cell, or why there are none to read."""
    try:
        value = read_json(cell)
    except ValueError:
        value = None
    if separator is not None and not isinstance(value, list):
        parted = cell.split(separator.strip() or separator)
        return [label for part in parted if (label := part.strip())]
    if value is None:
        return f"{cell[:60]!r} is not JSON; write a list, or name the task's separator"
    if not isinstance(value, list) or any(isinstance(label, list | dict | None) for label in value):
        return f"{cell[:60]!r} is no list of texts"
    return [text for label in value if (text := (as_string(label) or "").strip())]
