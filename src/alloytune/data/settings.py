"""What the data part needs to know."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from alloytune.data.rules import Rules
from alloytune.errors import InputError


@dataclass(frozen=True)
class SplitSettings:
    """Shares of the rows to cut off for validation and test; `stratify` keeps the classes' proportions.

    A share of 0 cuts nothing: that split is given as a file, or, for the test, not wanted.
    """

    validation: float = 0.1
    test: float = 0.1
    stratify: bool = True

    def __post_init__(self) -> None:
        for name, share in (("validation", self.validation), ("test", self.test)):
            if not 0 <= share < 1:
                raise InputError(f"split.{name}", f"{share} is no share", "give a number from 0 to below 1")
        if self.validation + self.test >= 1:
            raise InputError(
                "split",
                f"validation {self.validation} and test {self.test} leave nothing to train on",
                "make their sum less than 1",
            )


@dataclass(frozen=True)
class DataSettings:
    """Where the examples are and how to make splits of them.

    `columns` are the names in the tables of the columns that the task knows, by its own names; `rules` say what it
    makes of them; `other_columns` are those of the other ways of writing its examples, `other_tasks` those of other
    tasks. Where `contradicts`, one text with two answers is a mistake in the data, unless the rules unite them. A split
    is None when its table is handed over in memory; `validation` or `test` that is not given at all is cut from train.
    `rows` is the most rows of train to use, those cut off included, drawn after cleaning. `place` is where a recipe
    says all that.
    """

    train: Path | None
    validation: Path | None = None
    test: Path | None = None
    columns: Mapping[str, str] = field(default_factory=lambda: {"text": "text", "label": "label"})
    rules: Rules = field(default_factory=lambda: Rules(("text",), ("label",), mended=("text",)))
    other_columns: tuple[tuple[str, ...], ...] = ()
    other_tasks: tuple[tuple[str, tuple[str, ...]], ...] = ()
    contradicts: bool = True
    encoding: str = "utf-8"
    rows: int | None = None
    split: SplitSettings = SplitSettings()
    repair: bool = True
    near_duplicates: bool = True
    seed: int = 0
    place: str = "data"

    def __post_init__(self) -> None:
        if self.rows is not None and self.rows < 1:
            raise InputError("data.rows", f"{self.rows} is no number of rows", "give at least 1")
        named = list(self.columns.values())
        for column in named:
            if named.count(column) > 1:
                raise InputError(
                    "data",
                    f'the column "{column}" is named for more than one of {", ".join(self.columns)}',
                    "name a column of its own for each",
                )
