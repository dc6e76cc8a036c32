"""The standard error of a difference between two models on the same rows."""

import numpy as np
import pytest

from alloytune.evaluate.compare import standard_error


def test_accuracy_by_hand() -> None:
    targets = [0] * 100
    before = [0] * 94 + [1] * 6  # the second model mends these six, and gets two others wrong
    after = [1] * 2 + [0] * 98
    expected = np.sqrt((8 - 100 * 0.04**2) / 99) / 10
    assert standard_error("accuracy", before, after, targets, 2, 0) == pytest.approx(expected)
    assert expected == pytest.approx(0.0281, abs=1e-4)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_equal_answers_differ_surely_by_nothing(metric: str) -> None:
    targets, answers = [0, 1, 2, 1, 0], [0, 1, 1, 1, 2]
    assert standard_error(metric, answers, answers, targets, 3, 0) == 0.0


def test_pairs_are_surer_than_two_samples() -> None:
    """Two models that err on the same rows are told apart by the few others, which unpaired intervals cannot."""
    random = np.random.default_rng(0)
    targets = random.integers(2, size=400)
    before = np.where(random.random(400) < 0.3, 1 - targets, targets)
    after = np.where(random.random(400) < 0.02, 1 - before, before)
    paired = standard_error("macro_f1", before.tolist(), after.tolist(), targets.tolist(), 2, 0)
    unpaired = np.sqrt(2 * 0.3 * 0.7 / 400)
    assert 0 < paired < 0.4 * unpaired
    assert paired == pytest.approx(
        standard_error("accuracy", before.tolist(), after.tolist(), targets.tolist(), 2, 0), rel=0.2
    )
    assert paired == standard_error("macro_f1", before.tolist(), after.tolist(), targets.tolist(), 2, 0)
