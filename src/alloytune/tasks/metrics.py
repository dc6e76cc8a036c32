"""Scores of a classifier, by scikit-learn."""

from typing import Any

import numpy as np
from scipy.special import log_softmax
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support


def classification_scores(
    logits: np.ndarray, targets: np.ndarray, labels: tuple[str, ...]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Give accuracy, macro-F1 and mean cross-entropy, and the tables behind them.

    `logits` [rows, labels], `targets` [rows] as class numbers. Macro-F1 is the plain mean over all labels of
    2 * precision * recall / (precision + recall), 0 for a label that is neither there nor predicted:
    targets 0 0 1, predictions 0 1 1 give F1 2/3 and 2/3, macro-F1 2/3, accuracy 2/3.
    """
    predicted = logits.argmax(axis=1)
    classes = np.arange(len(labels))
    loss = -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(targets)), targets].mean()
    precision, recall, f1, support = precision_recall_fscore_support(
        targets, predicted, labels=classes, zero_division=0
    )
    values = {
        "accuracy": float(accuracy_score(targets, predicted)),
        "macro_f1": float(f1_score(targets, predicted, labels=classes, average="macro", zero_division=0)),
        "loss": float(loss),
    }
    details = {
        "per_class": [
            {
                "label": label,
                "precision": float(precision[n]),
                "recall": float(recall[n]),
                "f1": float(f1[n]),
                "rows": int(support[n]),
            }
            for n, label in enumerate(labels)
        ],
        "confusion": _confusion(targets, predicted, labels),
    }
    return values, details


def _confusion(targets: np.ndarray, predicted: np.ndarray, labels: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Count rows by true label, then predicted label; empty cells are left out, so many labels stay small."""
    counts: dict[str, dict[str, int]] = {label: {} for label in labels}
    cells, rows = np.unique(np.stack([targets, predicted]), axis=1, return_counts=True)
    for true, found, number in zip(*cells, rows, strict=True):
        counts[labels[true]][labels[found]] = int(number)
    return counts
