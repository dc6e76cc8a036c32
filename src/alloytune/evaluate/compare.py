"""How sure a difference between two models is, from their answers to the same rows."""

import numpy as np

from alloytune.evaluate.bootstrap import RESAMPLES, Values
from alloytune.metrics import gain
from alloytune.tasks.task import Scores

ROUGH = 200  # draws where a rule of thumb needs the error: known to 5 % by them, in 15 ms instead of 150


def standard_error(
    metric: str, before: np.ndarray, after: np.ndarray, values: Values, seed: int, draws: int = RESAMPLES
) -> float:
    """Give the standard error of the difference in a metric between two models on the same rows.

    `before` and `after` are the models' figures, [rows, figures], and `values` makes the metrics of them. The standard
    deviation over paired bootstrap draws, rows drawn anew each with both models' figures (Efron and Tibshirani 1993;
    Berg-Kirkpatrick et al. 2012). 100 rows of which the second model gets 6 more and 2 fewer right differ by 0.04 in
    accuracy, with a standard error of 0.028.
    """
    random = np.random.default_rng(seed)
    found = np.empty(draws)
    for n in range(draws):
        drawn = random.integers(len(before), size=len(before))
        found[n] = values(after[drawn])[metric] - values(before[drawn])[metric]
    counted = found[~np.isnan(found)]  # draws without rows that say anything of the metric
    return float(counted.std(ddof=1)) if len(counted) > 1 else 0.0


def clearly_behind(metric: str, best: Scores, other: Scores, values: Values, seed: int) -> bool:
    """Tell whether a model is behind the best by more than one standard error of their difference.

    What lies within it is as good as the best (the one-standard-error rule, Breiman et al. 1984).
    """
    lost = gain(metric, other.values[metric], best.values[metric])
    if lost <= 0:
        return False
    return lost > standard_error(metric, np.array(best.figures), np.array(other.figures), values, seed, ROUGH)
