"""Write prepared splits to a folder and read them back."""

import json
from pathlib import Path

import polars as pl

from alloytune.data.audit import audit_from_json
from alloytune.data.prepare import SPLITS, Dataset
from alloytune.errors import InputError


def write_splits(dataset: Dataset, folder: Path) -> None:
    """Write train.parquet, validation.parquet, test.parquet and audit.json; the same data give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        table: pl.DataFrame = getattr(dataset, split)
        table.write_parquet(folder / f"{split}.parquet")
    text = json.dumps(dataset.audit.to_json(), indent=2, ensure_ascii=False)
    (folder / "audit.json").write_text(text + "\n", encoding="utf-8")


def load_splits(folder: Path) -> Dataset:
    """Read back what `write_splits` wrote; raise an InputError naming a file that is missing or broken."""
    try:
        train, validation, test = (pl.read_parquet(folder / f"{split}.parquet", glob=False) for split in SPLITS)
        audit = audit_from_json(json.loads((folder / "audit.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError) as error:
        reason = str(error).partition("\n")[0][:160]
        raise InputError(str(folder), f"its splits cannot be read back ({reason})", "prepare the data again") from None
    return Dataset(train, validation, test, audit)
