"""Tables to test with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from alloytune.data.prepare import Dataset, prepare
from alloytune.data.settings import DataSettings
from alloytune.tasks.classification import Classification
from alloytune.tasks.task import Task

SPLITS = ("train", "validation", "test")
WORDS = ("river", "stone", "market", "window", "garden", "silver", "thunder", "paper")


def sentence(number: int) -> str:
    """Give a sentence of its own, near to none of another number."""
    return " ".join(f"{word}{number * 17 + place}" for place, word in enumerate(WORDS))


def table(counts: dict[str, int]) -> pl.DataFrame:
    """Give a clean table with so many rows of each label."""
    labels = [label for label, number in counts.items() for _ in range(number)]
    return pl.DataFrame({"text": [sentence(number) for number in range(len(labels))], "label": labels})


def labelled(train: Path | None, /, *, text_pair: str | None = None, **settings: object) -> DataSettings:
    """Give the settings for texts with labels."""
    columns = {"text": "text", "text_pair": text_pair, "label": settings.pop("label", "label")}
    named = {name: str(column) for name, column in columns.items() if column}
    return DataSettings(train, columns=named, rules=Classification.rules({}, named), **settings)  # type: ignore[arg-type]


def prepared(given: pl.DataFrame, /, **settings: object) -> Dataset:
    """Prepare a table held in memory."""
    return prepare(labelled(None, **settings), given)  # type: ignore[arg-type]


def write(path: Path, rows: pl.DataFrame) -> Path:
    """Write a table as CSV."""
    rows.write_csv(path)
    return path


def all_rows(dataset: Dataset) -> pl.DataFrame:
    """Give the rows of all splits in one table."""
    return pl.concat([getattr(dataset, split).with_columns(split=pl.lit(split)) for split in SPLITS])


def with_answers(task: type[Task], settings: Mapping[str, Any], given: pl.DataFrame, **more: Any) -> Dataset:
    """Prepare a table for a task, its columns under the task's own names."""
    rules = task.rules(settings, given.columns)
    return prepare(DataSettings(None, columns={name: name for name in given.columns}, rules=rules, **more), given)
