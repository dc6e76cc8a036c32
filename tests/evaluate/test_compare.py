"""The standard error of a difference between two models on the same rows."""

import numpy as np
import pytest

from alloytune.evaluate.compare import clearly_behind, standard_error
from alloytune.tasks.task import Scores
from evaluate.test_bootstrap import figures, labels


def error(metric: str, before: np.ndarray, after: np.ndarray, targets: np.ndarray, num_labels: int) -> float:
    return standard_error(metric, figures(targets, before), figures(targets, after), labels(num_labels).values, seed=0)


def test_accuracy_by_hand() -> None:
    """The bootstrap agrees with s / sqrt(n), s the standard deviation of the rows' differences."""
    targets = np.zeros(100, dtype=int)
    before = np.array([0] * 94 + [1] * 6)  # the second model mends these six, and gets two others wrong
    after = np.array([1] * 2 + [0] * 98)
    expected = np.sqrt((8 - 100 * 0.04**2) / 99) / 10
    assert expected == pytest.approx(0.0281, abs=1e-4)
    assert error("accuracy", before, after, targets, 2) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "loss"])
def test_equal_answers_differ_surely_by_nothing(metric: str) -> None:
    targets, answers = np.array([0, 1, 2, 1, 0]), np.array([0, 1, 1, 1, 2])
    assert error(metric, answers, answers, targets, 3) == 0.0


def test_pairs_are_surer_than_two_samples() -> None:
    """Two models that err on the same rows are told apart by the few others, which unpaired intervals cannot."""
    random = np.random.default_rng(0)
    targets = random.integers(2, size=400)
    before = np.where(random.random(400) < 0.3, 1 - targets, targets)
    after = np.where(random.random(400) < 0.02, 1 - before, before)
    paired = error("macro_f1", before, after, targets, 2)
    unpaired = np.sqrt(2 * 0.3 * 0.7 / 400)
    assert 0 < paired < 0.4 * unpaired
    assert paired == pytest.approx(error("accuracy", before, after, targets, 2), rel=0.2)
    assert paired == error("macro_f1", before, after, targets, 2)


def test_a_model_is_clearly_behind_when_it_lost_more_than_chance_explains() -> None:
    """Of 100 rows, the other gets 1 right that the best has wrong, and 2 wrong that the best has right; or 9."""
    targets = np.zeros(100, dtype=int)
    best = scores_with(targets, wrong=range(10))
    assert not clearly_behind("accuracy", best, scores_with(targets, wrong=range(1, 12)), VALUES, seed=0)
    assert clearly_behind("accuracy", best, scores_with(targets, wrong=range(1, 19)), VALUES, seed=0)
    assert not clearly_behind("accuracy", best, scores_with(targets, wrong=range(5)), VALUES, seed=0)


VALUES = labels(2).values


def scores_with(targets: np.ndarray, wrong: range) -> Scores:
    answers = targets.copy()
    answers[list(wrong)] = 1
    found = figures(targets, answers)
    return Scores(VALUES(found), figures=found.tolist())
