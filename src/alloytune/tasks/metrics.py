"""Scores of a choice among labels."""

from typing import Any

import numpy as np
from scipy.special import log_softmax

CONFIDENCE_BINS = 15  # as in Guo et al. 2017


def spread_of(outputs: np.ndarray) -> float:
    """Give how far outputs, [rows, outputs], differ from row to row: the largest of their standard deviations.

    Rows 1 0 and 3 0 give 1.
    """
    return float(outputs.std(axis=0).max())


def choice_figures(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Give class number, predicted class number, cross-entropy and confidence of every row, [rows, 4].

    `logits` [rows, labels], `targets` [rows] as class numbers. The confidence is the probability of what is predicted.
    """
    log_chances = log_softmax(logits.astype(np.float64), axis=1)
    rows, predicted = np.arange(len(targets)), logits.argmax(axis=1)
    figures = (targets, predicted, -log_chances[rows, targets], np.exp(log_chances[rows, predicted]))
    return np.stack(figures, axis=1).astype(np.float64)


def choice_values(figures: np.ndarray, num_labels: int) -> dict[str, float]:
    """Give accuracy, macro-F1, mean cross-entropy and calibration error of what `choice_figures` gives."""
    targets, predicted = figures[:, 0].astype(int), figures[:, 1].astype(int)
    right = targets == predicted
    return {
        "accuracy": float(right.mean()),
        "macro_f1": macro_f1(targets, predicted, num_labels),
        "loss": float(figures[:, 2].mean()),
        "calibration_error": calibration_error(figures[:, 3], right),
    }


def macro_f1(targets: np.ndarray, predicted: np.ndarray, num_labels: int) -> float:
    """Give the mean of 2 tp / (2 tp + fp + fn) over the labels that occur in either, as scikit-learn does.

    Targets 0 0 1, predictions 0 1 1 give F1 2/3 and 2/3, macro-F1 2/3, however many labels there are.
    """
    right, true, found = _counts(targets, predicted, num_labels)
    occurs = true + found > 0
    return float(np.mean(2 * right[occurs] / (true + found)[occurs]))


def _counts(targets: np.ndarray, predicted: np.ndarray, num_labels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give for each label the rows that are rightly predicted to have it, that have it, and that are predicted to."""
    right, true, found = (
        np.bincount(numbers, minlength=num_labels) for numbers in (targets[targets == predicted], targets, predicted)
    )
    return right, true, found


def calibration_error(confidences: np.ndarray, right: np.ndarray) -> float:
    """Give the expected calibration error (Guo et al. 2017): how far confidence and share of right answers are apart.

    Rows are put into 15 bins of equal width by confidence; a bin's gap counts by its rows. Ten rows of confidence 0.8,
    of which 6 are right, give 0.2.
    """
    bins = np.minimum((confidences * CONFIDENCE_BINS).astype(int), CONFIDENCE_BINS - 1)
    gaps = np.bincount(bins, weights=confidences - right, minlength=CONFIDENCE_BINS)
    return float(np.abs(gaps).sum() / len(confidences))


def choice_details(targets: np.ndarray, predicted: np.ndarray, labels: tuple[str, ...]) -> dict[str, Any]:
    """Give precision, recall and F1 by class (0 where there is nothing to divide by) and the confusion table."""
    counts = zip(labels, *(each.tolist() for each in _counts(targets, predicted, len(labels))), strict=True)
    return {
        "per_class": [
            {
                "label": label,
                "precision": right / max(found, 1),
                "recall": right / max(true, 1),
                "f1": 2 * right / max(true + found, 1),
                "rows": true,
            }
            for label, right, true, found in counts
        ],
        "confusion": _confusion(targets, predicted, labels),
    }


def _confusion(targets: np.ndarray, predicted: np.ndarray, labels: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Count rows by true label, then predicted label; empty cells are left out, so many labels stay small."""
    counts: dict[str, dict[str, int]] = {label: {} for label in labels}
    cells, rows = np.unique(np.stack([targets, predicted]), axis=1, return_counts=True)
    for true, found, number in zip(*cells, rows, strict=True):
        counts[labels[true]][labels[found]] = int(number)
    return counts
