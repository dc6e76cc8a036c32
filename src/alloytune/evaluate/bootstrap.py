"""Confidence intervals by drawing the test rows anew."""

import numpy as np
from scipy.stats import bootstrap

RESAMPLES = 2000
CONFIDENCE = 0.95


def intervals(predicted: np.ndarray, targets: np.ndarray, num_labels: int, seed: int) -> dict[str, tuple[float, float]]:
    """Give the 95 % percentile intervals of accuracy and macro-F1 over test rows drawn with replacement.

    `predicted`, `targets`: [rows] class numbers. The interval is about the choice of test rows alone, not about the
    seed of the training. A single row, or only right answers, give an interval of no width.
    """
    cells = targets * num_labels + predicted  # a row falls into one cell of the confusion table

    def statistic(drawn: np.ndarray) -> np.ndarray:
        counts = np.bincount(drawn, minlength=num_labels**2).reshape(num_labels, num_labels)
        return np.array([_accuracy(counts), _macro_f1(counts)])

    if len(np.unique(cells)) < 2:
        only = statistic(cells)
        return {"accuracy": (only[0], only[0]), "macro_f1": (only[1], only[1])}
    found = bootstrap(
        (cells,),
        statistic,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=False,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return {metric: (float(found.low[n]), float(found.high[n])) for n, metric in enumerate(("accuracy", "macro_f1"))}


def _accuracy(confusion: np.ndarray) -> float:
    return float(confusion.trace() / confusion.sum())


def _macro_f1(confusion: np.ndarray) -> float:
    """Give the mean over labels of 2 tp / (2 tp + fp + fn), 0 for a label that is nowhere."""
    right = confusion.diagonal()
    both = confusion.sum(axis=0) + confusion.sum(axis=1)
    return float(np.mean(2 * right / np.maximum(both, 1)))
