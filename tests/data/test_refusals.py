"""Data that nothing can be learned from, or judged on, is refused with the reason and the remedy."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from alloytune.data.prepare import prepare
from alloytune.data.settings import DataSettings, SplitSettings
from alloytune.errors import InputError
from data.example_tables import labelled, prepared, sentence, table, write

GOOD = table({"a": 20, "b": 20})

OTHERS = (("multilabel", ("text", "labels")), ("preference", ("prompt", "chosen", "rejected")))

REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "empty text": (
        lambda: prepared(GOOD.with_columns(text=pl.lit(" "))),
        "table: no usable row is left (missing text: 40, first table:1 (text)); "
        "give other rows, or check the columns named",
    ),
    "single class": (
        lambda: prepared(table({"a": 20})),
        'table: every row is of the one class "a"; give examples of at least two classes',
    ),
    "single row": (
        lambda: prepared(table({"a": 20, "b": 1, "c": 9})),
        'table: 1 class has a single row, which cannot be split: "b"; collect more rows of each, or remove these rows',
    ),
    "single row of a class written otherwise": (
        lambda: prepared(table({"NUM": 20, "num": 1, "c": 9})),
        'table: 1 class has a single row, which cannot be split: "num"; did you mean "NUM"? correct them, or remove '
        "these rows",
    ),
    "single rows": (
        lambda: prepared(table({"a": 20} | {str(number): 1 for number in range(7)})),
        'table: 7 classes have a single row, which cannot be split: "0", "1", "2", "3", "4" and 2 more; collect '
        "more rows of each, or remove these rows",
    ),
    "too few rows": (
        lambda: prepared(table({"a": 2, "b": 2})),
        "table: 4 usable rows are too few to cut validation and test from; give more rows, or a file for each split",
    ),
    "all near": (
        lambda: prepared(
            pl.DataFrame({"text": [f"{sentence(1)} https://t.co/{n}" for n in range(20)], "label": list("ab") * 10})
        ),
        "data.split: no row can be cut for validation and test: so many are near-duplicates of one another, or the "
        "only ones that teach a label, which train needs; "
        "give more rows, a file for each split, another seed, or near_duplicates: false",
    ),
    "same column": (
        lambda: DataSettings(None, columns={"text": "x", "label": "x"}),
        'data: the column "x" is named for more than one of text, label; name a column of its own for each',
    ),
    "missing column": (
        lambda: prepared(GOOD, label="labels"),
        'table: there is no column "labels"; did you mean "label"? the columns are: "text", "label"',
    ),
    "too few for rows": (
        lambda: prepared(GOOD, rows=5),
        "data.rows: 5 rows cannot hold every class in every split; allow at least 6",
    ),
    "no rows": (lambda: DataSettings(None, rows=0), "data.rows: 0 is no number of rows; give at least 1"),
    "no share": (
        lambda: SplitSettings(validation=1.5),
        "split.validation: 1.5 is no share; give a number from 0 to below 1",
    ),
    "no train": (
        lambda: SplitSettings(0.5, 0.5),
        "split: validation 0.5 and test 0.5 leave nothing to train on; make their sum less than 1",
    ),
    "columns of another task": (
        lambda: prepared(GOOD.select(prompt="text", chosen="text", rejected="label"), other_tasks=OTHERS),
        'table: there is no column "text"; prompt and chosen and rejected are columns of the task preference: write '
        "task: preference, or --set task=preference",
    ),
    "columns that others call otherwise": (
        lambda: prepared(GOOD.rename({"text": "review", "label": "stars"}), other_columns=(("text", "label"),)),
        'table: there is no column "text"; name them: data: {text: review, label: stars}, or --set data.text=review '
        "--set data.label=stars",
    ),
    "a column called nearly so": (
        lambda: prepared(GOOD.rename({"label": "labels"}), other_tasks=OTHERS),
        'table: there is no column "label"; did you mean "labels"? the columns are: "text", "labels"',
    ),
    "no data": (
        lambda: prepare(labelled(None)),
        "data.train: there is neither a file nor a table; give one of them",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unusable_data_is_refused(name: str) -> None:
    attempt, message = REFUSED[name]
    with pytest.raises(InputError) as caught:
        attempt()
    assert str(caught.value) == message


def test_labels_that_train_never_saw_are_listed(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", GOOD)
    other = table({"a": 43, "10": 1, "2": 1})[41:]
    test = write(tmp_path / "test.csv", other)
    with pytest.raises(InputError) as caught:
        prepare(labelled(train, test=test))
    assert str(caught.value) == (
        f'{test}: test has labels that train does not have: "2", "10"; add examples of them to train, or remove them'
    )


def test_one_row_of_a_class_is_enough_where_nothing_is_cut(tmp_path: Path) -> None:
    rows = table({"a": 6, "b": 5})
    parts = {"train": rows[5:7], "validation": rows[:2].extend(rows[7:8]), "test": rows[2:5].extend(rows[8:])}
    files = {name: write(tmp_path / f"{name}.csv", part) for name, part in parts.items()}
    dataset = prepare(labelled(files.pop("train"), **files))
    assert dataset.audit.kept == {"train": 2, "validation": 3, "test": 6}


def test_one_file_cannot_be_two_splits(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", GOOD)
    with pytest.raises(InputError, match="it is given for both train and test"):
        prepare(labelled(path, test=path))


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    rows = table({"a": 20, "b": 20})
    for name, part in {"one": rows[::2], "two": rows[1::2]}.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name / "rows.csv", part)
    dataset = prepare(labelled(tmp_path / "one" / "rows.csv", test=tmp_path / "two" / "rows.csv"))
    assert dataset.test["row"][0] == "two/rows.csv:1"
    assert dataset.audit.read == {"one/rows.csv": 20, "two/rows.csv": 20}
