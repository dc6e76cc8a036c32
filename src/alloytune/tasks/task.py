"""What a task is to the rest of the program: head, examples, loss, answers, scores. A new task is one file.

Such a file has the task's class as `TASK`, and its words stand in `alloytune.recipe.tasks`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, ClassVar, Self

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from alloytune.data.rules import Rules
from alloytune.metrics import gain


@dataclass(frozen=True, slots=True)
class Example:
    """One tokenized row. `row` says where it came from; `target` is what the task makes of its answer."""

    row: str
    inputs: dict[str, list[int]]
    target: Any

    @property
    def num_tokens(self) -> int:
        """Give the length in tokens."""
        return len(self.inputs["input_ids"])


@dataclass(frozen=True)
class Encoded:
    """The examples of a split, and what the length limit took: rows cut short, and rows left out with the reason.

    `notes` say what may be unwanted about rows and model together.
    """

    examples: Sequence[Example]
    num_cut: int = 0
    left_out: tuple[tuple[str, str], ...] = ()  # row, reason
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Padded examples of one forward pass. `inputs`: what the model is called with; `targets`: [examples, ...]."""

    inputs: dict[str, Tensor]
    targets: Tensor
    rows: tuple[str, ...]
    num_tokens: int  # padding not counted
    num_targets: int  # positions that carry loss
    # examples in the model at a time, where a task's loss needs all of the update's
    pass_size: int | None = field(default=None, kw_only=True)
    # what it belongs to, where an update has batches of several things that are learned; their losses are means apart
    learning: str | None = field(default=None, kw_only=True)

    def to(self, device: torch.device) -> "Batch":
        """Give the same batch on a device."""
        if device.type == "cpu":
            return self
        inputs = {key: value.to(device, non_blocking=True) for key, value in self.inputs.items()}
        return replace(self, inputs=inputs, targets=self.targets.to(device, non_blocking=True))


@dataclass(frozen=True)
class Scores:
    """What a model reaches on a split: `values` by metric, and in `details` the tables behind them.

    `figures` are the few numbers of every row that all values are made of, [rows, figures] in the split's order: two
    models can be compared row by row. `spread` is how far the model's outputs differ from row to row, where that tells
    something of it.
    """

    values: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)
    figures: list[list[float]] = field(default_factory=list)
    spread: float | None = None

    def rank(self, metric: str) -> list[float]:
        """Give what is larger for a better model: by a metric, and equal ones by the loss."""
        return [gain(metric, 0.0, self.values[metric]), -self.values["loss"]]


class Task(ABC):
    """What is learned, with all that it has learned from the training rows, such as its labels.

    Methods that read `answers` read them as `answers` gives them, one for each of `examples`.
    """

    tunes: ClassVar[bool] = False  # whether `tuned` changes anything

    @property
    @abstractmethod
    def auto_class(self) -> Any:
        """Give transformers' Auto class with the head."""

    @property
    @abstractmethod
    def pipeline(self) -> str:
        """Give what model hubs call it."""

    @classmethod
    @abstractmethod
    def rules(cls, settings: Mapping[str, Any], columns: Collection[str]) -> Rules:
        """Say what is to hold of rows with these columns. `settings` are the recipe's for this task."""

    @classmethod
    @abstractmethod
    def learn(cls, settings: Mapping[str, Any], train: pl.DataFrame) -> Self:
        """Learn from the training rows what the task must know of its answers."""

    @classmethod
    @abstractmethod
    def recall(cls, settings: Mapping[str, Any], learned: Mapping[str, Any]) -> Self:
        """Make the task anew of its `learned`, as it came back from JSON."""

    @classmethod
    @abstractmethod
    def blank(cls) -> Self:
        """Give the task as it might be, to look at a model without any data."""

    @property
    def learned(self) -> dict[str, Any]:
        """Give what was learned from training and validation rows, in JSON's types."""
        return {}

    @property
    def config(self) -> dict[str, Any]:
        """Give what the head, and whoever reads its outputs, needs in the model's config."""
        return {}

    @abstractmethod
    def encode(self, table: pl.DataFrame, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Encoded:
        """Tokenize rows. Columns of answers may be absent: targets are then of no account.

        Raises InputError for answers that the task does not know.
        """

    @abstractmethod
    def collate(self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> Batch:
        """Pad examples into one batch."""

    def summed_loss(self, model: nn.Module, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        """Give the loss summed over the batch's targets, as a float32 scalar."""
        return self.loss(self.outputs(model, batch), batch, label_smoothing)

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        """Give the loss of outputs, summed over the batch's targets."""

    @abstractmethod
    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Give what the loss is made of, [targets, ...] in float32."""

    @abstractmethod
    def answers(self, model: nn.Module, batch: Batch, tokenizer: PreTrainedTokenizerBase) -> Sequence[Any]:
        """Give what the model answers to every example of a batch: arrays or texts in main memory."""

    def tuned(self, answers: Sequence[Any], examples: Sequence[Example]) -> Self:
        """Choose on validation rows what is not trained, such as a threshold."""
        return self

    def spread(self, answers: Sequence[Any]) -> float | None:
        """Give how far outputs differ from row to row: their standard deviation; None where that says nothing."""
        return None

    @abstractmethod
    def figures(self, answers: Sequence[Any], examples: Sequence[Example]) -> np.ndarray:
        """Reduce every row to the few numbers that all values are made of, [rows, figures]."""

    @abstractmethod
    def values(self, figures: np.ndarray) -> dict[str, float]:
        """Give the value of every metric of rows with these figures; NaN where they say nothing of it."""

    def details(self, answers: Sequence[Any], examples: Sequence[Example], figures: np.ndarray) -> dict[str, Any]:
        """Give the tables behind the values: lists of rows, or counts by row and column, also by `figures`."""
        return {}

    @abstractmethod
    def table(self, answers: Sequence[Any], examples: Sequence[Example]) -> pl.DataFrame:
        """Give answers as columns, the answer itself first."""


def find_task(name: str) -> type[Task]:
    """Give a task's class by its name."""
    task: type[Task] = import_module(f"alloytune.tasks.{name}").TASK
    return task


def scores_of(task: Task, answers: Sequence[Any], examples: Sequence[Example]) -> Scores:
    """Score the answers to a whole split; a metric of which it says nothing is 0."""
    figures = task.figures(answers, examples)
    values = {metric: 0.0 if math.isnan(value) else value for metric, value in task.values(figures).items()}
    return Scores(values, task.details(answers, examples, figures), figures.tolist(), task.spread(answers))
