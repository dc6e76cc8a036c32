"""What the stages of a run learn: the recipe's task, and what stages of their own learn beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl
from transformers import PreTrainedTokenizerBase

from alloytune.data.prepare import Dataset
from alloytune.errors import InputError
from alloytune.tasks.abilities import ReadsOn
from alloytune.tasks.task import Encoded, Example, Scores, Task


@dataclass(frozen=True)
class Learning:
    """A task with its examples by split, and what the length limit took of them."""

    task: Task
    examples: Mapping[str, Sequence[Example]]
    num_cut: Mapping[str, int]  # rows by split that lost tokens
    left_out: Mapping[str, list[list[str]]] = field(default_factory=dict)  # row and reason by split, none if encoded
    notes: tuple[str, ...] = ()  # on the rows of train


@dataclass(frozen=True)
class Reached:
    """The scores of a model in what `learning` names; scores in different things are not compared."""

    learning: str
    scores: Scores


def encode_splits(
    task: Task, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None, where: str
) -> Learning:
    """Tokenize all splits; raises InputError where the limit has left nothing of one. `where` names the data."""
    tables = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    learn = task.encode_in_pieces if isinstance(task, ReadsOn) else task.encode
    encoded = {
        split: (learn if split == "train" else task.encode)(table, tokenizer, max_length)
        for split, table in tables.items()
    }
    _require_examples(encoded, tables, where)
    return Learning(
        task,
        {split: one.examples for split, one in encoded.items()},
        {split: one.num_cut for split, one in encoded.items()},
        {split: [list(row) for row in one.left_out] for split, one in encoded.items() if one.left_out},
        encoded["train"].notes,
    )


def _require_examples(encoded: Mapping[str, Encoded], tables: Mapping[str, pl.DataFrame], where: str) -> None:
    for split, one in encoded.items():
        if tables[split].height and not one.examples:
            row, reason = one.left_out[0]
            remedy = "raise max_length, or give others" if "limit" in reason else "mend them, or give others"
            raise InputError(f"{where}.{split}", f"no row is left; {row}, as the first of all: {reason}", remedy)
