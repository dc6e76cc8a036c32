"""Which of a task's scores are shown where there is little room."""

from collections.abc import Mapping

from alloytune.metrics import METRICS

MOST = 2


def shown_metrics(values: Mapping[str, float], metric: str | None = None) -> list[str]:
    """Give the first metrics of some scores, and `metric`, the one that counts, if it is not among them."""
    first = list(values)[:MOST]
    return first if metric is None or metric in first else [*first, metric]


def score_line(values: Mapping[str, float]) -> str:
    """Write the first scores and the loss in a line."""
    return "  ".join(f"{METRICS[name].heading} {values[name]:.4f}" for name in shown_metrics(values, "loss"))
