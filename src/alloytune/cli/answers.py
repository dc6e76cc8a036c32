"""The table that `predict` writes: the rows as they were given, and the answers beside them."""

import json
from collections.abc import Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from alloytune.errors import InputError

if TYPE_CHECKING:
    import polars as pl


def require_writable(output: Path) -> None:
    """Raise an InputError for an output that could not be written once the work is done."""
    if output.suffix not in (".csv", ".jsonl"):
        raise InputError("--output", f"{str(output)!r} is neither .csv nor .jsonl", "give one of the two")
    if not output.parent.is_dir():
        raise InputError("--output", f"there is no folder {str(output.parent)!r}", "make it, or name another")
    if output.is_dir():
        raise InputError("--output", f"{str(output)!r} is a folder", "name a file")


def free_names(taken: Sequence[str], wanted: Sequence[str]) -> dict[str, str]:
    """Give each column a name that is free: `label`, else `predicted_label`, `predicted_label_2` and so on."""
    names: dict[str, str] = {}
    for column in wanted:
        used = {*taken, *wanted, *names.values()} - ({column} - set(taken))
        candidates = chain([column, f"predicted_{column}"], (f"predicted_{column}_{n}" for n in count(2)))
        names[column] = next(name for name in candidates if name not in used)
    return names


def csv_of(given: "pl.DataFrame", answers: "pl.DataFrame") -> str:
    """Write rows with their answers as CSV, in which lists are JSON."""
    import polars as pl

    from alloytune.data.cells import as_string

    nested = [name for name, kind in answers.schema.items() if kind.is_nested()]
    written = [pl.Series(name, [as_string(cell) for cell in answers[name].to_list()], pl.String) for name in nested]
    return pl.concat([given, answers.with_columns(written)], how="horizontal").write_csv()


def write_table(
    given: "pl.DataFrame", answers: "pl.DataFrame", output: Path, records: Sequence[Mapping[str, object]] | None
) -> None:
    """Write CSV or JSONL aside and rename it, so that a failure leaves the old file whole.

    `records` are the given rows with their types, which JSONL keeps, where the given file has such.
    """
    from alloytune.record.atomic import save_errors

    aside = output.with_name(f".{output.name}.partial")
    with save_errors(output):
        try:
            if output.suffix == ".csv":
                aside.write_text(csv_of(given, answers), encoding="utf-8")
            else:
                pairs = zip(records or given.iter_rows(named=True), answers.iter_rows(named=True), strict=True)
                lines = (json.dumps({**row, **answer}, ensure_ascii=False) + "\n" for row, answer in pairs)
                # half a surrogate pair, which JSON may hold and UTF-8 may not, is escaped again
                aside.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
            aside.replace(output)
        finally:
            aside.unlink(missing_ok=True)
