"""What the data part needs to know."""

from dataclasses import dataclass
from pathlib import Path

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

    `train` is None when a table is handed over in memory. A missing `validation` or `test` is cut from train.
    `rows` is the most rows of train to use, those cut off included, drawn after cleaning.
    """

    train: Path | None
    validation: Path | None = None
    test: Path | None = None
    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    encoding: str = "utf-8"
    rows: int | None = None
    split: SplitSettings = SplitSettings()
    repair: bool = True
    near_duplicates: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rows is not None and self.rows < 1:
            raise InputError("data.rows", f"{self.rows} is no number of rows", "give at least 1")
        named = [column for column in (self.text, self.text_pair, self.label) if column is not None]
        for column in named:
            if named.count(column) > 1:
                raise InputError(
                    "data",
                    f'the column "{column}" is named for more than one of text, text_pair and label',
                    "name a column of its own for each",
                )
