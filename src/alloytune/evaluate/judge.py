"""Scores of a split with what is needed to judge them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from alloytune.evaluate.bootstrap import intervals
from alloytune.tasks.task import Example, Task, scores_of


def score_with_intervals(task: Task, answers: Sequence[Any], examples: Sequence[Example], seed: int) -> dict[str, Any]:
    """Give rows, values, 95 % intervals and details of answers whose targets are known."""
    scores = scores_of(task, answers, examples)
    spans = intervals(np.array(scores.figures), task.values, seed)
    return {
        "rows": len(examples),
        "values": scores.values,
        "intervals": {metric: list(span) for metric, span in spans.items()},
        "details": scores.details,
    }
