"""Scores of a split with what is needed to judge them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from alloytune.evaluate.bootstrap import intervals
from alloytune.tasks.task import Example, Task


def score_with_intervals(task: Task, outputs: np.ndarray, examples: Sequence[Example], seed: int) -> dict[str, Any]:
    """Give rows, values, 95 % intervals and details of outputs whose targets are known."""
    targets = np.array([example.target for example in examples])
    scores = task.scores(outputs, targets)
    spans = intervals(outputs.argmax(axis=1), targets, outputs.shape[1], seed)
    return {
        "rows": len(examples),
        "values": scores.values,
        "intervals": {metric: list(span) for metric, span in spans.items()},
        "details": scores.details,
    }
