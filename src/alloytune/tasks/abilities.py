"""What a task may be able to do beside what every task does (`alloytune.tasks.task.Task`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np
import polars as pl
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alloytune.tasks.task import Encoded, Example


@runtime_checkable
class Undivided(Protocol):
    """A task whose loss holds the examples of an update against each other.

    Its batches are whole updates; their `pass_size` says how many examples go through the model at a time.
    """

    undivided: ClassVar[bool]


@runtime_checkable
class ReadsOn(Protocol):
    """A task that learns all of a text, however long it is; it is scored on the text's beginning."""

    def encode_in_pieces(
        self, table: pl.DataFrame, tokenizer: PreTrainedTokenizerBase, max_length: int | None
    ) -> Encoded:
        """Tokenize as `encode` does; what is beyond the limit makes further examples of the row."""


@runtime_checkable
class Varying(Protocol):
    """A task whose examples look different in every epoch, such as tokens that are hidden anew."""

    def varied(self, example: Example, random: np.random.Generator) -> Example:
        """Draw an example's form for one epoch; as many targets as before."""


@runtime_checkable
class Anchored(Protocol):
    """A task whose loss compares a model with what earlier weights answered to the same examples."""

    def anchored(self, answers: Sequence[Any], examples: Sequence[Example]) -> list[Example]:
        """Give the examples with the earlier weights' answers in them."""


@runtime_checkable
class Sparing(Protocol):
    """A task that answers only some rows where it is scored, as an answer takes long: up to so many tokens."""

    @property
    def max_new_tokens(self) -> int:
        """Give the most that one answer takes."""

    def answering(self, num_rows: int) -> Self:
        """Give the task as it answers the first `num_rows` rows."""

    def answering_within(self, num_tokens: int) -> Self:
        """Give the task as its answers take so many tokens at most."""


@runtime_checkable
class FitsModel(Protocol):
    """A task that depends on what a model's folder says of it."""

    def fitted(self, source: str) -> Self:
        """Give the task for a model; raises InputError where they do not go together."""


@runtime_checkable
class StartsOutputs(Protocol):
    """A task that knows what its head should put out before anything is learned."""

    @property
    def first_outputs(self) -> tuple[float, ...] | None:
        """Give them, one for each output; None where they are not known."""


@runtime_checkable
class WritesFiles(Protocol):
    """A task that adds files of its own to a saved model."""

    def write_files(self, folder: Path, model: PreTrainedModel, max_length: int | None) -> None:
        """Write them beside the model's."""
