"""Intervals over test rows."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from alloytune.evaluate.bootstrap import intervals
from alloytune.evaluate.compare import standard_error
from alloytune.tasks.classification import Classification
from alloytune.tasks.generation import Generation
from alloytune.tasks.text_scores import text_scores


def figures(targets: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Give what is left of answers of full confidence."""
    return np.stack([targets, predicted, targets != predicted, np.ones(len(targets))], axis=1).astype(float)


def labels(number: int) -> Classification:
    return Classification(tuple("abcdef"[:number]))


def test_the_interval_holds_the_score_and_narrows_with_rows() -> None:
    random = np.random.default_rng(0)
    widths = []
    for rows in (100, 1600):
        targets = random.integers(0, 3, rows)
        predicted = np.where(random.random(rows) < 0.8, targets, (targets + 1) % 3)
        found = intervals(figures(targets, predicted), labels(3).values, seed=0)
        low, high = found["accuracy"]
        assert low < accuracy_score(targets, predicted) < high
        f1_low, f1_high = found["macro_f1"]
        assert f1_low < f1_score(targets, predicted, average="macro") < f1_high
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.3)


def test_accuracy_agrees_with_the_binomial_formula() -> None:
    targets = np.zeros(400, dtype=int)
    predicted = np.array([0] * 300 + [1] * 100)
    low, high = intervals(figures(targets, predicted), labels(2).values, seed=1)["accuracy"]
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert (low, high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.008)


def test_draws_without_an_answered_row_do_not_count() -> None:
    task = Generation(("prompt", "completion"), generate=2)
    rows = np.zeros((30, 3 + sum(score.size for score in text_scores(task.metrics).values())))
    rows[:, :2] = 1.0
    assert intervals(rows, task.values, seed=0)["exact_match"] == (0.0, 0.0)
    rows[0, 2:4] = 1.0  # the one answer that was written is the wanted one
    assert intervals(rows, task.values, seed=0)["exact_match"] == (1.0, 1.0)
    other = rows.copy()
    other[0, 3] = 0.0
    assert standard_error("exact_match", rows, other, task.values, seed=0) == 0.0


def test_rows_that_are_alike_give_no_width() -> None:
    ones = np.ones(9, dtype=int)
    assert intervals(figures(ones, ones), labels(2).values, seed=0)["accuracy"] == (1.0, 1.0)
