"""How sure a difference between two models is, from their answers to the same rows."""

from collections.abc import Sequence

import numpy as np

from alloytune.evaluate.bootstrap import RESAMPLES, macro_f1


def standard_error(
    metric: str, before: Sequence[int], after: Sequence[int], targets: Sequence[int], num_labels: int, seed: int
) -> float:
    """Give the standard error of the difference in a metric between two models on the same rows.

    `before`, `after` and `targets` are class numbers by row. Accuracy: s / sqrt(n), with s the standard deviation of
    the rows' differences (1 where only the second model is right, -1 where only the first is). So 100 rows of which the
    second model gets 6 more and 2 fewer right differ by 0.04, with a standard error of 0.0281. Macro-F1: the standard
    deviation over paired bootstrap draws (Efron and Tibshirani 1993; Berg-Kirkpatrick et al. 2012).
    """
    one, two, right = (np.asarray(values) for values in (before, after, targets))
    if metric == "accuracy":
        differences = (two == right).astype(float) - (one == right)
        return float(differences.std(ddof=1) / np.sqrt(len(differences))) if len(differences) > 1 else 0.0
    return _bootstrap(one, two, right, num_labels, seed)


def _bootstrap(one: np.ndarray, two: np.ndarray, right: np.ndarray, num_labels: int, seed: int) -> float:
    """Draw the rows anew, each with both models' answers."""
    random = np.random.default_rng(seed)
    found = np.empty(RESAMPLES)
    for n in range(RESAMPLES):
        drawn = random.integers(len(right), size=len(right))
        first, second = (macro_f1(right[drawn], answers[drawn], num_labels) for answers in (one, two))
        found[n] = second - first
    return float(found.std(ddof=1))
