"""What a task is to the rest of the program: head, examples, loss, outputs, scores. A new task is one file."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Example:
    """One tokenized row. `row` says where it came from; `target` is the class number (-1 where unknown)."""

    row: str
    inputs: dict[str, list[int]]
    target: int

    @property
    def num_tokens(self) -> int:
        """Give the length in tokens."""
        return len(self.inputs["input_ids"])


@dataclass(frozen=True)
class Batch:
    """Padded examples of one forward pass. `inputs`: [examples, tokens] each; `targets`: [examples]."""

    inputs: dict[str, Tensor]
    targets: Tensor
    rows: tuple[str, ...]
    num_tokens: int  # padding not counted

    def to(self, device: torch.device) -> "Batch":
        """Give the same batch on a device."""
        if device.type == "cpu":
            return self
        inputs = {key: value.to(device, non_blocking=True) for key, value in self.inputs.items()}
        return replace(self, inputs=inputs, targets=self.targets.to(device, non_blocking=True))

    @property
    def num_targets(self) -> int:
        """Give the positions that carry loss."""
        return len(self.rows)


@dataclass(frozen=True)
class Scores:
    """What a model reaches on a split: `values` by metric, and in `details` the tables behind them.

    `predicted` is the answer to every row, in the split's order: two models can be compared row by row.
    """

    values: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)
    predicted: list[int] = field(default_factory=list)

    def rank(self, metric: str) -> list[float]:
        """Give what is larger for a better model: by a metric, and equal ones by the loss."""
        return [-self.values["loss"] if metric == "loss" else self.values[metric], -self.values["loss"]]


class Task(Protocol):
    """What is learned."""

    auto_class: ClassVar[Any]  # transformers' Auto class with the head

    @property
    def config(self) -> dict[str, Any]:
        """What the head needs in the model's config."""

    def encode(
        self, table: pl.DataFrame, tokenizer: PreTrainedTokenizerBase, max_length: int | None
    ) -> tuple[list[Example], int]:
        """Tokenize rows; also give how many were cut to `max_length`."""

    def collate(self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> Batch:
        """Pad examples into one batch."""

    def summed_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Give the loss summed over the batch's targets, as a float32 scalar."""

    def loss(self, outputs: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        """Give the loss of outputs, summed over the batch's targets."""

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Give what predictions are made of, [examples, ...] in float32."""

    def scores(self, outputs: np.ndarray, targets: np.ndarray) -> Scores:
        """Score the outputs of a whole split."""
