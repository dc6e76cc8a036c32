"""Bring the given tables into one, with the same columns whatever theirs are called."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from alloytune.data.cells import as_strings, written_alike
from alloytune.data.columns import (
    add_optional,
    add_stand_ins,
    nearest_column,
    require_columns,
    require_rows,
    require_unique,
)
from alloytune.data.read import read_table
from alloytune.data.settings import DataSettings
from alloytune.errors import InputError

# What these columns are called in data sets and by tools that many have their tables from.
KNOWN_AS = {
    "text": ("sentence", "content", "review", "comment", "tweet", "body", "document"),
    "label": ("labels", "class", "category", "sentiment", "intent", "target", "score", "rating", "stars"),
    "labels": ("tags", "categories", "topics", "genres"),
    "tokens": ("words",),
    "tags": ("ner_tags", "ner", "labels"),
    "spans": ("entities",),
    "messages": ("conversations", "conversation", "dialogue", "dialog"),
    "instruction": ("question", "query"),
    "output": ("response", "answer"),
    "prompt": ("question", "query"),
    "completion": ("response", "answer"),
    "source": ("article", "document", "text", "src"),
    "target": ("summary", "highlights", "translation", "tgt"),
    "query": ("anchor", "question", "sentence1"),
    "document": ("positive", "pos", "answer", "passage", "sentence2"),
}


@dataclass(frozen=True)
class Source:
    """One given table: the split it is for, where it is (for errors), its short name (for rows) and its rows."""

    split: str
    where: str
    name: str
    table: pl.DataFrame


def read_sources(settings: DataSettings, tables: Mapping[str, pl.DataFrame | None]) -> list[Source]:
    """Give the table of each given split, of its file or of `tables`; raise an InputError for what cannot be used."""
    files = {"train": settings.train, "validation": settings.validation, "test": settings.test}
    paths = {split: path for split, path in files.items() if path is not None}
    held = {split: table for split, table in tables.items() if table is not None}
    _require_one_each(paths, held)
    _require_different(paths)
    names = _short_names(list(paths.values()))
    option = f"--set {settings.place}.encoding="
    sources = {split: _source_held(split, table) for split, table in held.items()} | {
        split: Source(split, str(path), names[path], read_table(path, settings.encoding, option))
        for split, path in paths.items()
    }
    chosen = [_choose_columns(sources[split], settings) for split in files if split in sources]
    whole = written_alike([source.table for source in chosen], "label")
    return [replace(source, table=table) for source, table in zip(chosen, whole, strict=True)]


def _source_held(split: str, table: pl.DataFrame) -> Source:
    where = "table" if split == "train" else f"{split} table"
    require_rows(table, where)
    require_unique(where, table.columns)
    return Source(split, where, "table" if split == "train" else split, as_strings(table))


def _require_one_each(paths: Mapping[str, Path], held: Mapping[str, pl.DataFrame]) -> None:
    """Raise an InputError where train is not given, or a split is given twice."""
    if both := [split for split in paths if split in held]:
        raise InputError(f"data.{both[0]}", "there are both a file and a table", "give one of them")
    if "train" not in {*paths, *held}:
        raise InputError("data.train", "there is neither a file nor a table", "give one of them")


def _choose_columns(source: Source, settings: DataSettings) -> Source:
    _require_written_so(source, settings)
    table = add_stand_ins(source.table, settings.columns, settings.rules.stand_ins)
    if source.split != "train":  # whose columns say what is read
        table = add_optional(table, settings.columns, settings.rules.optional)
    require_columns(table, source.where, list(settings.columns.values()))
    number = pl.int_range(1, table.height + 1).cast(pl.String)
    table = table.select(
        (pl.lit(f"{source.name}:") + number).alias("row"),
        pl.lit(source.split).alias("split"),
        *(pl.col(theirs).alias(ours) for ours, theirs in settings.columns.items()),
    )
    return Source(source.split, source.where, source.name, table)


def _require_written_so(source: Source, settings: DataSettings) -> None:
    """Raise an InputError for a table whose columns are those of another way to write examples, or another task."""
    there = set(source.table.columns)
    missing = [column for column in settings.columns.values() if column not in there]
    if not missing:
        return
    is_own_name = missing[0] in settings.columns and nearest_column(missing[0], source.table.columns) is None
    remedies = [
        f"name those that are there: data: {{{', '.join(f'{name}: {name}' for name in columns)}}}"
        for columns in settings.other_columns
        if there.issuperset(columns)
    ] + [
        f"{' and '.join(columns)} are columns of the task {task}: write task: {task}, or --set task={task}"
        for task, columns in settings.other_tasks
        if is_own_name and there.issuperset(columns) and not settings.columns.keys() >= set(columns)
    ]
    if is_own_name:
        remedies += filter(None, (_name_columns(columns, there) for columns in settings.other_columns))
    if remedies:
        raise InputError(source.where, f'there is no column "{missing[0]}"', remedies[0])


def _name_columns(columns: Sequence[str], there: Collection[str]) -> str | None:
    """Say how to name those that a table calls otherwise; None where one is not there under any known name."""
    found = {name: next((n for n in (name, *KNOWN_AS.get(name, ())) if n in there), None) for name in columns}
    if None in found.values() or len(set(found.values())) < len(columns):
        return None
    given = {name: column for name, column in found.items() if name != column}
    options = " ".join(f"--set data.{name}={column}" for name, column in given.items())
    return f"name them: data: {{{', '.join(f'{name}: {column}' for name, column in given.items())}}}, or {options}"


def _require_different(given: dict[str, Path]) -> None:
    splits = list(given)
    for place, split in enumerate(splits):
        for other in splits[:place]:
            if given[split].resolve() == given[other].resolve():
                raise InputError(
                    str(given[split]),
                    f"it is given for both {other} and {split}",
                    f"give another file, or none to have {split} cut from train",
                )


def _short_names(paths: list[Path]) -> dict[Path, str]:
    """Name each file by as many of its last parts as tell it from the others."""
    for length in range(1, max(map(len, (path.parts for path in paths)), default=0) + 1):
        names = {path: "/".join(path.parts[-length:]) for path in paths}
        if len(set(names.values())) == len(paths):
            return names
    return {path: str(path) for path in paths}
