"""Classification of a text or a pair of texts into one of several labels."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import polars as pl
import torch
from scipy.special import softmax
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from alloytune.data.rules import Rules
from alloytune.errors import InputError
from alloytune.tasks.labels import (
    count_labels,
    label_config,
    require_among,
    require_labels,
    sort_naturally,
    warn_of_labels,
)
from alloytune.tasks.metrics import choice_details, choice_figures, choice_values, spread_of
from alloytune.tasks.task import Batch, Encoded, Example, Task
from alloytune.tasks.texts import collate_texts, encode_texts, text_columns
from alloytune.tasks.uncached import call_uncached


@dataclass(frozen=True)
class Classification(Task):
    """One label per text; the loss is cross-entropy. `labels` in the order of the head's outputs.

    `class_weights` multiply the losses of training rows by label; all are 1 where absent.
    """

    labels: tuple[str, ...]
    class_weights: tuple[float, ...] | None = None
    auto_class: ClassVar[Any] = AutoModelForSequenceClassification
    pipeline: ClassVar[str] = "text-classification"

    @classmethod
    def rules(cls, settings: Mapping[str, Any], columns: Collection[str]) -> Rules:
        """Ask for a label in every row, and for rows enough of every label."""
        texts = text_columns(columns)
        return Rules(
            texts=texts,
            answers=("label",),
            mended=texts,
            strata=lambda rows: rows["label"].to_list(),
            require=require_labels,
            count=lambda rows: count_labels(rows["label"]),
            warn=warn_of_labels,
        )

    @classmethod
    def learn(cls, settings: Mapping[str, Any], train: pl.DataFrame) -> Self:
        """Learn the labels, in natural order, and weigh them as the settings say."""
        counts = count_labels(train["label"])
        return cls(tuple(counts), _weigh(settings["class_weights"], counts))

    @classmethod
    def recall(cls, settings: Mapping[str, Any], learned: Mapping[str, Any]) -> Self:
        """Take the labels; weights are of training alone."""
        return cls(tuple(learned["labels"]))

    @classmethod
    def blank(cls) -> Self:
        """Give two labels."""
        return cls(("first", "second"))

    @property
    def learned(self) -> dict[str, Any]:
        """Give the labels."""
        return {"labels": list(self.labels)}

    @property
    def config(self) -> dict[str, Any]:
        """Give the labels in the form that transformers keeps in a model's config."""
        return label_config(self.labels) | {"problem_type": "single_label_classification"}

    def encode(self, table: pl.DataFrame, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Encoded:
        """Tokenize the columns `text` and, where there, `text_pair`; a target is a class number, -1 where unknown."""
        labels: list[Any] = table["label"].to_list() if "label" in table.columns else [None] * table.height
        number_of = {label: number for number, label in enumerate(self.labels)}
        require_among("label", self.labels, ([label] for label in labels if label is not None))
        return encode_texts(table, [number_of.get(label, -1) for label in labels], tokenizer, max_length)

    def collate(self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> Batch:
        """Pad to the longest of these examples."""
        return collate_texts(examples, torch.tensor([example.target for example in examples]), tokenizer)

    def loss(self, outputs: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        """Give the cross-entropy of logits; `label_smoothing` is the share of each target spread over all labels."""
        weights = None if self.class_weights is None else outputs.new_tensor(self.class_weights)
        return cross_entropy(outputs, batch.targets, weights, reduction="sum", label_smoothing=label_smoothing)

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

    def figures(self, answers: Sequence[np.ndarray], examples: Sequence[Example]) -> np.ndarray:
        """Give class number, predicted class number, cross-entropy and confidence of every row."""
        return choice_figures(np.stack(answers), np.array([example.target for example in examples]))

    def values(self, figures: np.ndarray) -> dict[str, float]:
        """Give accuracy, macro-F1, mean cross-entropy and calibration error."""
        return choice_values(figures, len(self.labels))

    def details(
        self, answers: Sequence[np.ndarray], examples: Sequence[Example], figures: np.ndarray
    ) -> dict[str, Any]:
        """Give figures per class and the confusion table."""
        predicted = np.stack(answers).argmax(axis=1)
        return choice_details(np.array([example.target for example in examples]), predicted, self.labels)

    def table(self, answers: Sequence[np.ndarray], examples: Sequence[Example]) -> pl.DataFrame:
        """Give columns `label`, `probability` and one probability per label."""
        chances = softmax(np.reshape(answers, (len(answers), len(self.labels))), axis=1)
        return pl.DataFrame(
            {
                "label": [self.labels[n] for n in chances.argmax(axis=1)],
                "probability": chances.max(axis=1).astype(np.float64),
            }
            | {f"probability_{label}": chances[:, n].astype(np.float64) for n, label in enumerate(self.labels)},
            schema_overrides={"label": pl.String},
        )


TASK = Classification


def _weigh(class_weights: Any, counts: Mapping[str, int]) -> tuple[float, ...] | None:
    """Give the weight of every label; raises InputError for one that train does not have."""
    if class_weights is None:
        return None
    if class_weights == "balanced":
        return tuple(sum(counts.values()) / (len(counts) * number) for number in counts.values())
    unknown = sort_naturally(set(class_weights) - set(counts))
    if unknown:
        raise InputError(
            "task.classification.class_weights",
            f"train has no label {', '.join(map(repr, unknown[:5]))}",
            f"it has {', '.join(counts)}",
        )
    return tuple(class_weights.get(label, 1.0) for label in counts)
