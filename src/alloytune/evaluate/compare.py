"""How sure a difference between two models is, from their answers to the same rows."""

import numpy as np

from alloytune.evaluate.bootstrap import RESAMPLES, Values


def standard_error(metric: str, before: np.ndarray, after: np.ndarray, values: Values, seed: int) -> float:
    """Give the standard error of the difference in a metric between two models on the same rows.

    `before` and `after` are the models' figures, [rows, figures], and `values` makes the metrics of them. The standard
    deviation over paired bootstrap draws, rows drawn anew each with both models' figures (Efron and Tibshirani 1993;
    Berg-Kirkpatrick et al. 2012). 100 rows of which the second model gets 6 more and 2 fewer right differ by 0.04 in
    accuracy, with a standard error of 0.028.
    """
    random = np.random.default_rng(seed)
    found = np.empty(RESAMPLES)
    for n in range(RESAMPLES):
        drawn = random.integers(len(before), size=len(before))
        found[n] = values(after[drawn])[metric] - values(before[drawn])[metric]
    return float(found.std(ddof=1))
