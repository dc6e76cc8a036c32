"""Multilabel classification: any number of labels for a text or a pair of texts."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import polars as pl
import torch
from scipy.special import expit
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from alloytune.data.rules import Counts, Given, Rules
from alloytune.errors import InputError
from alloytune.tasks.label_lists import num_switches, read_labels, sift_labels, unite_labels
from alloytune.tasks.labels import FEW_ROWS, label_config, name_some, require_among, require_known, sort_naturally
from alloytune.tasks.metrics import spread_of
from alloytune.tasks.task import Batch, Encoded, Example, Task
from alloytune.tasks.texts import collate_texts, encode_texts, text_columns
from alloytune.tasks.thresholds import best_threshold, set_details, set_figures, set_values
from alloytune.tasks.uncached import call_uncached


@dataclass(frozen=True)
class Multilabel(Task):
    """Any number of labels per text; the loss is binary cross-entropy, averaged over the labels.

    A label is predicted where its probability is at least its threshold. `thresholds` stand in the order of `labels`.
    `tuning` says how they are chosen on validation: one for all, one for each, or not at all. `first_outputs` are the
    log-odds of the labels in training, where the head begins.
    """

    labels: tuple[str, ...]
    thresholds: tuple[float, ...]
    tuning: str | float = "tuned"
    separator: str | None = None
    first_outputs: tuple[float, ...] | None = None
    auto_class: ClassVar[Any] = AutoModelForSequenceClassification
    pipeline: ClassVar[str] = "text-classification"
    tunes: ClassVar[bool] = True

    @classmethod
    def rules(cls, settings: Mapping[str, Any], columns: Collection[str]) -> Rules:
        """Ask for a list of labels in every row, an empty one included; rows of one text make one, with all labels."""
        texts = text_columns(columns)
        return Rules(
            texts=texts,
            answers=("labels",),
            mended=texts,
            sift=partial(sift_labels, separator=settings["separator"]),
            unite=unite_labels,
            taught=lambda rows: [frozenset(read_labels(cell)) for cell in rows["labels"]],
            require=_require,
            count=_count,
            warn=partial(_warn, settings["separator"]),
        )

    @classmethod
    def learn(cls, settings: Mapping[str, Any], train: pl.DataFrame) -> Self:
        """Learn the labels, in natural order."""
        counts = _count(train)
        start = settings["threshold"] if isinstance(settings["threshold"], float) else 0.5
        odds = tuple(math.log((count + 0.5) / (train.height - count + 0.5)) for count in counts.values())
        return cls(tuple(counts), (start,) * len(counts), settings["threshold"], settings["separator"], odds)

    @classmethod
    def recall(cls, settings: Mapping[str, Any], learned: Mapping[str, Any]) -> Self:
        """Take labels and thresholds as they were learned."""
        return cls(tuple(learned["labels"]), tuple(learned["thresholds"]), settings["threshold"], settings["separator"])

    @classmethod
    def blank(cls) -> Self:
        """Give two labels."""
        return cls(("first", "second"), (0.5, 0.5))

    @property
    def learned(self) -> dict[str, Any]:
        """Give labels and thresholds."""
        return {"labels": list(self.labels), "thresholds": list(self.thresholds)}

    @property
    def config(self) -> dict[str, Any]:
        """Give the labels in the form that transformers keeps in a model's config, and their thresholds."""
        return label_config(self.labels) | {
            "problem_type": "multi_label_classification",
            "thresholds": list(self.thresholds),
        }

    def encode(self, table: pl.DataFrame, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Encoded:
        """Tokenize the columns `text` and, where there, `text_pair`; a target is the numbers of a row's labels."""
        cells = table["labels"].to_list() if "labels" in table.columns else ["[]"] * table.height
        lists = [read_labels(cell) for cell in cells]
        require_among("labels", self.labels, lists)
        number_of = {label: number for number, label in enumerate(self.labels)}
        targets = [[number_of[label] for label in labels] for labels in lists]
        return encode_texts(table, targets, tokenizer, max_length)

    def collate(self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> Batch:
        """Pad to the longest of these examples; targets are 1 for the labels of an example, else 0."""
        return collate_texts(examples, torch.from_numpy(self._truths(examples)).float(), tokenizer)

    def loss(self, outputs: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        """Give the binary cross-entropy, averaged over labels; `label_smoothing` is refused beforehand."""
        return binary_cross_entropy_with_logits(outputs, batch.targets, reduction="sum") / len(self.labels)

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Give the logits, [examples, labels]."""
        logits: Tensor = call_uncached(model, batch.inputs).logits
        return logits.float()

    def answers(self, model: nn.Module, batch: Batch, tokenizer: PreTrainedTokenizerBase) -> Sequence[np.ndarray]:
        """Give the logits of every example, [labels]."""
        return list(self.outputs(model, batch).cpu().numpy())

    def spread(self, answers: Sequence[np.ndarray]) -> float:
        """Give how far logits differ from row to row."""
        return spread_of(np.stack(answers))

    def tuned(self, answers: Sequence[np.ndarray], examples: Sequence[Example]) -> Self:
        """Choose the thresholds that give the best F1: micro-F1 with one for all labels, or each label's own."""
        truths, chances = self._truths(examples), self._chances(answers)
        if self.tuning == "tuned":
            return replace(self, thresholds=(best_threshold(truths, chances),) * len(self.labels))
        if self.tuning == "tuned-per-label":
            own = [best_threshold(truths[:, [n]], chances[:, [n]]) for n in range(len(self.labels))]
            return replace(self, thresholds=tuple(own))
        return self

    def figures(self, answers: Sequence[np.ndarray], examples: Sequence[Example]) -> np.ndarray:
        """Give for every row its labels and its predicted labels, as 0 and 1, its average precision and its loss."""
        logits = np.reshape(answers, (len(answers), len(self.labels))).astype(np.float64)
        return set_figures(self._truths(examples), logits, expit(logits) >= self.thresholds)

    def values(self, figures: np.ndarray) -> dict[str, float]:
        """Give micro-F1, macro-F1, average precision and loss."""
        return set_values(figures)

    def details(
        self, answers: Sequence[np.ndarray], examples: Sequence[Example], figures: np.ndarray
    ) -> dict[str, Any]:
        """Give figures per label."""
        predicted = self._chances(answers) >= self.thresholds
        return set_details(self._truths(examples), predicted, self.labels, self.thresholds)

    def table(self, answers: Sequence[np.ndarray], examples: Sequence[Example]) -> pl.DataFrame:
        """Give columns `labels`, written as in training, and one probability per label."""
        chances = self._chances(answers)
        lists = [[self.labels[n] for n in np.flatnonzero(row >= self.thresholds)] for row in chances]
        written = lists if self.separator is None else [self.separator.join(labels) for labels in lists]
        kind = pl.List(pl.String) if self.separator is None else pl.String()
        return pl.DataFrame(
            {"labels": pl.Series(written, dtype=kind)}
            | {f"probability_{label}": chances[:, n] for n, label in enumerate(self.labels)}
        )

    def _chances(self, answers: Sequence[np.ndarray]) -> np.ndarray:
        chances: np.ndarray = expit(np.reshape(answers, (len(answers), len(self.labels))).astype(np.float64))
        return chances

    def _truths(self, examples: Sequence[Example]) -> np.ndarray:
        truths = np.zeros((len(examples), len(self.labels)), dtype=int)
        for row, example in enumerate(examples):
            truths[row, example.target] = 1
        return truths


TASK = Multilabel

_NAMES = 'where 1 stands for a label that the row has, write the names of those, as in ["ui", "crash"]'


def _count(rows: pl.DataFrame) -> dict[str, int]:
    """Count the rows of each label, labels in natural order."""
    counts = Counter(label for cell in rows["labels"] for label in read_labels(cell))
    return {label: counts[label] for label in sort_naturally(counts)}


def _require(given: Given) -> None:
    """Raise an InputError where train teaches no label, or the same to every row, or a split has unknown ones."""
    if given.split == "train" and given.rows["labels"].n_unique() < 2:
        labels = given.rows["labels"][0]
        remedy = _NAMES if labels == '["0", "1"]' else "give rows with different labels"
        raise InputError(given.where, f"every row has the labels {labels}", remedy)
    require_known(given.where, given.split, pl.Series(list(_count(given.rows))), _count(given.train))


def _warn(separator: str | None, read: pl.DataFrame, kept: pl.DataFrame, counts: Counts) -> list[str]:
    few = [label for label, number in counts["train"].items() if number < FEW_ROWS]
    warnings = [f"fewer than {FEW_ROWS} training rows for {len(few)} label(s): {name_some(few)}"] if few else []
    if number := num_switches(read["labels"], separator):
        warnings.append(f'every cell has {number} times 0 or 1, read as the labels "0" and "1"; {_NAMES}')
    return warnings
