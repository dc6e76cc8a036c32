"""Regression: a number for a text or a pair of texts."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import polars as pl
import scipy
import torch
from torch import Tensor, nn
from torch.nn.functional import huber_loss, mse_loss
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from alloytune.data.rules import Given, Rules, Sieved, sieve_by
from alloytune.errors import InputError
from alloytune.tasks.task import Batch, Encoded, Example, Task
from alloytune.tasks.texts import collate_texts, encode_texts, text_columns
from alloytune.tasks.uncached import call_uncached

LARGEST = float(np.finfo(np.float32).max)  # what is larger cannot be an output, and its squares no float of 64 bits


@dataclass(frozen=True)
class Regression(Task):
    """One number per text. The head learns (number - `mean`) / `std`, mean and standard deviation of training rows.

    `huber`: errors beyond one standard deviation count linearly, not squared.
    """

    mean: float
    std: float
    huber: bool = False
    auto_class: ClassVar[Any] = AutoModelForSequenceClassification
    pipeline: ClassVar[str] = "text-classification"

    @classmethod
    def rules(cls, settings: Mapping[str, Any], columns: Collection[str]) -> Rules:
        """Ask for a finite number in every row; of several for one text, as of several raters, the mean counts."""
        texts = text_columns(columns)
        return Rules(
            texts=texts,
            answers=("label",),
            mended=texts,
            sift=_sift,
            unite=_mean,
            taught=_halves,
            require=_require_spread,
        )

    @classmethod
    def learn(cls, settings: Mapping[str, Any], train: pl.DataFrame) -> Self:
        """Learn mean and standard deviation."""
        numbers = np.array([float(label) for label in train["label"]])
        return cls(float(numbers.mean()), float(numbers.std()), settings["loss"] == "huber")

    @classmethod
    def recall(cls, settings: Mapping[str, Any], learned: Mapping[str, Any]) -> Self:
        """Take mean and standard deviation as they were learned."""
        return cls(learned["mean"], learned["std"], settings["loss"] == "huber")

    @classmethod
    def blank(cls) -> Self:
        """Leave numbers as they are."""
        return cls(0.0, 1.0)

    @property
    def learned(self) -> dict[str, Any]:
        """Give mean and standard deviation."""
        return {"mean": self.mean, "std": self.std}

    @property
    def config(self) -> dict[str, Any]:
        """Give one output, and what it takes to make a number of it: logit * label_std + label_mean."""
        return {"num_labels": 1, "problem_type": "regression", "label_mean": self.mean, "label_std": self.std}

    def encode(self, table: pl.DataFrame, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Encoded:
        """Tokenize the columns `text` and, where there, `text_pair`; a target is the number of `label`."""
        labels = table["label"].to_list() if "label" in table.columns else ["0"] * table.height
        return encode_texts(table, [float(label) for label in labels], tokenizer, max_length)

    def collate(self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> Batch:
        """Pad to the longest of these examples; targets are standardised."""
        targets = torch.tensor([(example.target - self.mean) / self.std for example in examples])
        return collate_texts(examples, targets, tokenizer)

    def loss(self, outputs: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        """Give the squared errors, or Huber's, of standardised numbers; `label_smoothing` is refused beforehand."""
        loss = huber_loss if self.huber else mse_loss
        return loss(outputs, batch.targets, reduction="sum")

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Give the standardised numbers, [examples]."""
        logits: Tensor = call_uncached(model, batch.inputs).logits
        return logits.float().squeeze(-1)

    def answers(self, model: nn.Module, batch: Batch, tokenizer: PreTrainedTokenizerBase) -> Sequence[float]:
        """Give the number of every example, in the units of the table."""
        standardised = self.outputs(model, batch).cpu().numpy().astype(np.float64)
        return list(standardised * self.std + self.mean)

    def spread(self, answers: Sequence[float]) -> float:
        """Give how far numbers differ from row to row, standardised."""
        return float(np.std(answers)) / self.std

    def figures(self, answers: Sequence[float], examples: Sequence[Example]) -> np.ndarray:
        """Give number, predicted number and loss of every row."""
        targets, predicted = np.array([example.target for example in examples]), np.array(answers, dtype=np.float64)
        errors = (predicted - targets) / self.std
        return np.stack([targets, predicted, scipy.special.huber(1.0, errors) if self.huber else errors**2], axis=1)

    def values(self, figures: np.ndarray) -> dict[str, float]:
        """Give R2, mean absolute error, Pearson's and Spearman's correlation, and the loss; 0 where all are equal.

        R2 is 1 - squared errors / squared distances from the mean: targets 1 2 3, predicted 1 2 4, give 0.5, and a mean
        absolute error of 1/3.
        """
        targets, predicted, losses = figures.T
        spread = float(((targets - targets.mean()) ** 2).sum())
        return {
            "r2": 1.0 - float(((targets - predicted) ** 2).sum()) / spread if spread else 0.0,
            "mae": float(np.abs(targets - predicted).mean()),
            "pearson": pearson(targets, predicted),
            "spearman": pearson(*map(scipy.stats.rankdata, (targets, predicted))),
            "loss": float(losses.mean()),
        }

    def table(self, answers: Sequence[float], examples: Sequence[Example]) -> pl.DataFrame:
        """Give the column `label`."""
        return pl.DataFrame({"label": pl.Series(list(answers), dtype=pl.Float64)})


TASK = Regression


def pearson(one: np.ndarray, two: np.ndarray) -> float:
    """Give Pearson's correlation, of ranks Spearman's; 0 where all numbers of a side are equal.

    As scipy's, without its test of significance: thousands of draws are correlated for an interval.
    """
    one, two = one - one.mean(), two - two.mean()
    size = float(np.linalg.norm(one) * np.linalg.norm(two))
    return float(np.clip(one @ two / size, -1.0, 1.0)) if size else 0.0


def _sift(table: pl.DataFrame) -> Sieved:
    """Write numbers in one way, and drop rows whose label is none, not finite, or larger than a model can learn."""
    if "label" not in table.columns:
        return table, []
    commas = [label if re.fullmatch(r"[-+]?\d+,\d+", label) else None for label in table["label"]]
    table, with_commas = sieve_by(table, commas, "label has a decimal comma, write a point")
    numbers = [_number(label) for label in table["label"]]
    details = [repr(label) if number is None else None for label, number in zip(table["label"], numbers, strict=True)]
    kept, dropped = sieve_by(table, details, "label is no number")
    finite = [number for number in numbers if number is not None]
    shown = [None if math.isfinite(number) else repr(number) for number in finite]
    kept = kept.with_columns(pl.Series("label", [repr(number) for number in finite], dtype=pl.String))
    kept, infinite = sieve_by(kept, shown, "label is not finite")
    sizes = [None if abs(float(label)) <= LARGEST else label for label in kept["label"]]
    kept, large = sieve_by(kept, sizes, f"label is larger than {LARGEST:.1e}")
    return kept, with_commas + dropped + infinite + large


def _mean(labels: Sequence[str]) -> str:
    return repr(math.fsum(map(float, labels)) / len(labels))


def _number(label: str) -> float | None:
    try:
        return None if "_" in label else float(label)  # "1_000" is a number in Python's code alone
    except ValueError:
        return None


def _halves(rows: pl.DataFrame) -> list[frozenset[str]]:
    """Say of each number whether it is a high one: train needs both, for numbers without spread teach nothing."""
    numbers = rows["label"].cast(pl.Float64)
    is_high = numbers > numbers.median()
    if not is_high.any():  # more than half of them are the highest
        is_high = numbers == numbers.max()
    return [frozenset({"a high number" if high else "a low number"}) for high in is_high]


def _require_spread(given: Given) -> None:
    """Raise an InputError where there is nothing to learn: every training row has the same number, or nearly so."""
    if given.split != "train":
        return
    number = given.rows["label"][0]
    if given.rows["label"].n_unique() < 2:
        raise InputError(given.where, f"every row has the label {number}", "give rows with different numbers")
    if not np.array([float(label) for label in given.rows["label"]]).std():  # its squares are too small for a float
        what = f"every row has nearly the label {number}"
        raise InputError(given.where, what, "give numbers that differ more, or another unit")
