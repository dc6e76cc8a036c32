"""Classification of a text or a pair of texts into one of several labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from alloytune.tasks.metrics import classification_scores
from alloytune.tasks.task import Batch, Example, Scores


@dataclass(frozen=True)
class Classification:
    """One label per text; the loss is cross-entropy. `labels` in the order of the head's outputs."""

    labels: tuple[str, ...]
    auto_class: ClassVar[Any] = AutoModelForSequenceClassification

    @property
    def config(self) -> dict[str, Any]:
        """Give the labels in the form that transformers keeps in a model's config."""
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: number for number, label in enumerate(self.labels)},
            "problem_type": "single_label_classification",
        }

    def encode(
        self, table: pl.DataFrame, tokenizer: PreTrainedTokenizerBase, max_length: int | None
    ) -> tuple[list[Example], int]:
        """Tokenize the columns `text` and, where there, `text_pair`; a row without `label` gets target -1."""
        texts = table["text"].to_list()
        pairs = table["text_pair"].to_list() if "text_pair" in table.columns else None
        if not texts:
            return [], 0
        encoded = tokenizer(texts, pairs, truncation=max_length is not None, max_length=max_length)
        number_of = {label: number for number, label in enumerate(self.labels)}
        labels = table["label"].to_list() if "label" in table.columns else [None] * len(texts)
        rows = table["row"].to_list() if "row" in table.columns else [str(n + 1) for n in range(len(texts))]
        examples = [
            Example(row, {key: encoded[key][n] for key in encoded if key != "attention_mask"}, number_of.get(label, -1))
            for n, (row, label) in enumerate(zip(rows, labels, strict=True))
        ]
        return examples, _count_cut(encoded, texts, pairs, tokenizer, max_length)

    def collate(self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> Batch:
        """Pad to the longest of these examples."""
        inputs = tokenizer.pad([example.inputs for example in examples], return_tensors="pt")
        return Batch(
            inputs=dict(inputs),
            targets=torch.tensor([example.target for example in examples]),
            rows=tuple(example.row for example in examples),
            num_tokens=sum(example.num_tokens for example in examples),
        )

    def summed_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Give the cross-entropy summed over the examples."""
        return self.loss(self.outputs(model, batch), batch)

    def loss(self, outputs: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
        """Give the cross-entropy of logits; `label_smoothing` is the share of each target spread over all labels."""
        return cross_entropy(outputs, batch.targets, reduction="sum", label_smoothing=label_smoothing)

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Give the logits, [examples, labels]."""
        logits: Tensor = model(**batch.inputs).logits
        return logits.float()

    def scores(self, outputs: np.ndarray, targets: np.ndarray) -> Scores:
        """Give accuracy, macro-F1 and loss, behind them figures per class and the confusion table, and the labels."""
        values, details = classification_scores(outputs, targets, self.labels)
        return Scores(values, details, outputs.argmax(axis=1).tolist())


def _count_cut(
    encoded: Any,
    texts: list[str],
    pairs: list[str] | None,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
) -> int:
    """Count the rows that lost tokens; only those that fill the limit can have."""
    if max_length is None:
        return 0
    full = [n for n, ids in enumerate(encoded["input_ids"]) if len(ids) >= max_length]
    if not full:
        return 0
    whole = tokenizer([texts[n] for n in full], [pairs[n] for n in full] if pairs else None)
    return sum(len(ids) > max_length for ids in whole["input_ids"])
