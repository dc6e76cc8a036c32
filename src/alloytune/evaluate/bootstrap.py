"""Confidence intervals by drawing the test rows anew."""

from collections.abc import Callable

import numpy as np
from scipy.stats import bootstrap

RESAMPLES = 2000
CONFIDENCE = 0.95

Values = Callable[[np.ndarray], dict[str, float]]


def intervals(figures: np.ndarray, values: Values, seed: int) -> dict[str, tuple[float, float]]:
    """Give the 95 % percentile interval of every metric over test rows drawn with replacement.

    `figures` are the numbers of each row, [rows, figures], and `values` makes the metrics of them. The interval is
    about the choice of test rows alone, not about the seed of the training. Rows that are all alike give intervals of
    no width.
    """
    metrics = list(values(figures))
    if len(np.unique(figures, axis=0)) < 2:
        return {metric: (value, value) for metric, value in values(figures).items()}

    def statistic(rows: np.ndarray) -> np.ndarray:
        found = values(figures[rows])
        return np.array([found[metric] for metric in metrics])

    found = bootstrap(
        (np.arange(len(figures)),),
        statistic,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=False,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return {metric: (float(found.low[n]), float(found.high[n])) for n, metric in enumerate(metrics)}
