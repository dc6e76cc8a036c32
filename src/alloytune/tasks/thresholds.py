"""Scores of sets of labels, and the probability from which on a label is predicted."""

from typing import Any

import numpy as np
import scipy

GRID = np.arange(1, 100) / 100


def best_threshold(truths: np.ndarray, chances: np.ndarray) -> float:
    """Give the threshold, in hundredths, with the best F1 over all entries; of equal ones that nearest to 0.5.

    `truths`, `chances` [rows, labels]: 0 or 1, and probabilities.
    """
    positive = int(truths.sum())
    true, every = np.sort(chances[truths == 1]), np.sort(chances, axis=None)
    # as many stand at or above a threshold as are not below it
    found = len(every) - np.searchsorted(every, GRID, side="left")
    right = len(true) - np.searchsorted(true, GRID, side="left")
    scores = 2 * right / np.maximum(found + positive, 1)
    best = np.flatnonzero(scores == scores.max())
    return float(GRID[best[np.abs(GRID[best] - 0.5).argmin()]])


def set_figures(truths: np.ndarray, logits: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Give labels, predicted labels, average precision and loss of every row, [rows, 2 labels + 2]."""
    precisions = [average_precision(truth, scores) for truth, scores in zip(truths, logits, strict=True)]
    losses = (np.logaddexp(0, logits) - truths * logits).mean(axis=1)
    return np.column_stack([truths, predicted, precisions, losses]).astype(np.float64)


def average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    """Give the mean, over a row's labels, of the share of its labels among all that score as high or higher.

    As scikit-learn's `label_ranking_average_precision_score`, 1 for a row with no label or with all. Of scores 3 2 1
    and labels 1 0 1 the shares are 1/1 and 2/3, the mean 5/6.
    """
    relevant = truth == 1
    if not relevant.any():
        return 1.0
    among_all = scipy.stats.rankdata(-scores, method="max")[relevant]
    among_own = scipy.stats.rankdata(-scores[relevant], method="max")
    return float((among_own / among_all).mean())


def set_values(figures: np.ndarray) -> dict[str, float]:
    """Give micro-F1, macro-F1, average precision and loss of what `set_figures` gives.

    F1 is 2 tp / (2 tp + fp + fn): micro over all entries, macro the mean over the labels that are there or predicted in
    any row, 0 without any. Labels 10 01, predicted 11 00: micro-F1 2/4, macro-F1 (1 + 0) / 2.
    """
    num_labels = (figures.shape[1] - 2) // 2
    truths, predicted = figures[:, :num_labels], figures[:, num_labels : 2 * num_labels]
    right, every = (truths * predicted).sum(axis=0), truths.sum(axis=0) + predicted.sum(axis=0)
    occurs = every > 0
    return {
        "micro_f1": float(2 * right.sum() / max(every.sum(), 1)),
        "macro_f1": float(np.mean(2 * right[occurs] / every[occurs])) if occurs.any() else 0.0,
        "average_precision": float(figures[:, -2].mean()),
        "loss": float(figures[:, -1].mean()),
    }


def set_details(
    truths: np.ndarray, predicted: np.ndarray, labels: tuple[str, ...], thresholds: tuple[float, ...]
) -> dict[str, Any]:
    """Give precision, recall and F1 by label, 0 where there is nothing to divide by, and its threshold."""
    right, true, found = (truths * predicted).sum(axis=0), truths.sum(axis=0), predicted.sum(axis=0)
    return {
        "per_label": [
            {
                "label": label,
                "precision": float(right[n] / max(found[n], 1)),
                "recall": float(right[n] / max(true[n], 1)),
                "f1": float(2 * right[n] / max(true[n] + found[n], 1)),
                "rows": int(true[n]),
                "threshold": thresholds[n],
            }
            for n, label in enumerate(labels)
        ]
    }
