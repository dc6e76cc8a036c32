"""Which of a task's scores are shown where there is little room."""

from collections.abc import Mapping, Sequence
from typing import Any

from alloytune.metrics import METRICS

MOST = 2


def shown_metrics(values: Mapping[str, float], metric: str | None = None) -> list[str]:
    """Give the first metrics of some scores, and `metric`, the one that counts, if it is not among them."""
    first = list(values)[:MOST]
    return first if metric is None or metric in first else [*first, metric]


def value_cells(stage: Mapping[str, Any], metrics: Sequence[str]) -> list[str]:
    """Write a stage's scores for a table; empty where it learned something else than the recipe does."""
    values = stage["scores"]["values"]
    return ["" if "learns" in stage else f"{values[metric]:.4f}" for metric in metrics]


def other_scores(stage: Mapping[str, Any]) -> str:
    """Write what a stage reached that learned something else, to stand behind its decision."""
    return f" ({score_line(stage['scores']['values'])})" if "learns" in stage else ""


def compared_answers(scores: Mapping[str, Any]) -> str:
    """Tell how many answers were written and compared, where not every row was answered; empty elsewhere."""
    compared = scores["details"].get("answers_compared", scores["rows"])
    return f", {compared:,} of them answered and compared" if compared < scores["rows"] else ""


def score_line(values: Mapping[str, float]) -> str:
    """Write the first scores and the loss in a line."""
    return "  ".join(f"{METRICS[name].heading} {values[name]:.4f}" for name in shown_metrics(values, "loss"))


def share_cell(stage: Mapping[str, Any]) -> str:
    """Give the share of the weights that a stage trains, and that of an update where they take turns."""
    keys = ("trained_parameters", "moved_on_average")
    trained, at_a_time = (f"{stage[key] / stage['parameters']:.1%}" for key in keys)
    return trained if at_a_time == trained else f"{trained}, {at_a_time} at a time"
