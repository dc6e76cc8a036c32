"""Intervals over test rows."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from alloytune.evaluate.bootstrap import intervals
from alloytune.tasks.metrics import classification_scores


def test_the_interval_holds_the_score_and_narrows_with_rows() -> None:
    random = np.random.default_rng(0)
    widths = []
    for rows in (100, 1600):
        targets = random.integers(0, 3, rows)
        predicted = np.where(random.random(rows) < 0.8, targets, (targets + 1) % 3)
        found = intervals(predicted, targets, 3, seed=0)
        low, high = found["accuracy"]
        assert low < accuracy_score(targets, predicted) < high
        f1_low, f1_high = found["macro_f1"]
        assert f1_low < f1_score(targets, predicted, average="macro") < f1_high
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.3)


def test_accuracy_agrees_with_the_binomial_formula() -> None:
    targets = np.zeros(400, dtype=int)
    predicted = np.array([0] * 300 + [1] * 100)
    low, high = intervals(predicted, targets, 2, seed=1)["accuracy"]
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert (low, high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.008)


def test_only_right_answers_give_no_width() -> None:
    assert intervals(np.ones(9, dtype=int), np.ones(9, dtype=int), 2, seed=0)["accuracy"] == (1.0, 1.0)


def test_scores_by_hand() -> None:
    targets = np.array([0, 0, 1])
    logits = np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    values, details = classification_scores(logits, targets, ("no", "yes"))
    assert values["accuracy"] == pytest.approx(2 / 3)
    assert values["macro_f1"] == pytest.approx(2 / 3)
    right, wrong = np.log1p(np.exp(-2)), np.log1p(np.exp(2))
    assert values["loss"] == pytest.approx((2 * right + wrong) / 3)
    assert details["confusion"] == {"no": {"no": 1, "yes": 1}, "yes": {"yes": 1}}
    assert details["per_class"][1] == {
        "label": "yes",
        "precision": 0.5,
        "recall": 1.0,
        "f1": pytest.approx(2 / 3),
        "rows": 1,
    }
