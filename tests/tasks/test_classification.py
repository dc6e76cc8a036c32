"""Labels: scores by hand, weights, calibration."""

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import precision_recall_fscore_support

from alloytune.errors import InputError
from alloytune.tasks.classification import Classification
from alloytune.tasks.metrics import calibration_error, choice_details, macro_f1
from alloytune.tasks.task import Batch, Example, scores_of

TRAIN = pl.DataFrame({"label": ["no"] * 9 + ["yes"] * 3})


def test_scores_by_hand() -> None:
    logits = np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    examples = [Example(str(n), {}, target) for n, target in enumerate([0, 0, 1])]
    scores = scores_of(Classification(("no", "yes")), list(logits), examples)
    values, details = scores.values, scores.details
    assert values["accuracy"] == pytest.approx(2 / 3)
    assert values["macro_f1"] == pytest.approx(2 / 3)
    assert macro_f1(np.array([0, 2]), np.array([0, 2]), 5) == 1.0  # labels that occur nowhere say nothing
    right, wrong = np.log1p(np.exp(-2)), np.log1p(np.exp(2))
    assert values["loss"] == pytest.approx((2 * right + wrong) / 3)
    assert values["calibration_error"] == pytest.approx(1 / (1 + np.exp(-2)) - 2 / 3)
    assert details["confusion"] == {"no": {"no": 1, "yes": 1}, "yes": {"yes": 1}}
    assert details["per_class"][1] == {
        "label": "yes",
        "precision": 0.5,
        "recall": 1.0,
        "f1": pytest.approx(2 / 3),
        "rows": 1,
    }


def test_figures_by_class_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    targets, predicted = random.integers(0, 4, 60), random.integers(1, 6, 60)  # a label nobody predicts, one nobody has
    found = choice_details(targets, predicted, tuple("abcdefg"))["per_class"]
    expected = precision_recall_fscore_support(targets, predicted, labels=np.arange(7), zero_division=0)
    for key, values in zip(("precision", "recall", "f1", "rows"), expected, strict=True):
        assert [row[key] for row in found] == pytest.approx(values)


def test_the_spread_of_logits_by_hand() -> None:
    examples = [Example(str(n), {}, n) for n in range(2)]
    logits = [np.array([1.0, 0.5]), np.array([3.0, 0.5])]
    assert scores_of(Classification(("no", "yes")), logits, examples).spread == 1.0


def test_calibration_by_hand() -> None:
    assert calibration_error(np.full(10, 0.8), np.arange(10) < 6) == pytest.approx(0.2)
    assert calibration_error(np.full(10, 0.6), np.arange(10) < 6) == pytest.approx(0.0)
    half = np.concatenate([np.full(5, 1.0), np.full(5, 0.5)])
    assert calibration_error(half, np.arange(10) < 5) == pytest.approx(0.25)


def test_balanced_weights_let_every_label_weigh_as_much() -> None:
    task = Classification.learn({"class_weights": "balanced"}, TRAIN)
    assert task.class_weights == pytest.approx((12 / 18, 2.0))
    named = Classification.learn({"class_weights": {"yes": 3.0}}, TRAIN)
    assert named.class_weights == (1.0, 3.0)
    logits = torch.zeros(12, 2)
    batch = Batch({}, torch.tensor([0] * 9 + [1] * 3), ("r",) * 12, 12, 12)
    assert float(task.loss(logits, batch)) == pytest.approx(12 * np.log(2))
    assert float(named.loss(logits, batch)) == pytest.approx(18 * np.log(2))
    with pytest.raises(InputError, match="train has no label 'maybe'; it has no, yes"):
        Classification.learn({"class_weights": {"maybe": 3.0}}, TRAIN)
