"""Numbers: values by hand and by scipy, their units, and labels that are none."""

import numpy as np
import polars as pl
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_absolute_error, r2_score

from alloytune.errors import InputError
from alloytune.tasks.regression import Regression
from alloytune.tasks.task import Batch, Example, scores_of
from data.example_tables import sentence, with_answers

MSE = {"loss": "mse"}


def values(targets: list[float], predicted: list[float], task: Regression | None = None) -> dict[str, float]:
    examples = [Example(str(n), {}, target) for n, target in enumerate(targets)]
    return scores_of(task or Regression(0.0, 1.0), predicted, examples).values


def test_values_by_hand() -> None:
    found = values([1.0, 2.0, 3.0], [1.0, 2.0, 4.0])
    assert found["r2"] == pytest.approx(0.5)
    assert found["mae"] == pytest.approx(1 / 3)
    assert found["spearman"] == pytest.approx(1.0)
    assert found["loss"] == pytest.approx(1 / 3)


def test_values_are_those_of_scipy_and_scikit_learn() -> None:
    random = np.random.default_rng(0)
    targets = random.integers(0, 9, 60).astype(float)
    predicted = targets + random.normal(0, 2, 60)
    found = values(targets.tolist(), predicted.tolist())
    assert found["r2"] == pytest.approx(r2_score(targets, predicted))
    assert found["mae"] == pytest.approx(mean_absolute_error(targets, predicted))
    assert found["pearson"] == pytest.approx(pearsonr(targets, predicted).statistic)
    assert found["spearman"] == pytest.approx(spearmanr(targets, predicted).statistic)


def test_the_spread_is_standardised() -> None:
    examples = [Example(str(n), {}, 1990.0 + n) for n in range(2)]
    assert scores_of(Regression(1990.0, 5.0), [1980.0, 2000.0], examples).spread == 2.0


def test_equal_numbers_have_no_correlation() -> None:
    assert values([1.0, 2.0], [5.0, 5.0])["pearson"] == 0.0
    assert values([2.0, 2.0], [1.0, 5.0])["r2"] == 0.0


@pytest.mark.parametrize("loss", ["mse", "huber"])
def test_the_loss_is_about_standardised_numbers(loss: str) -> None:
    task = Regression.learn({"loss": loss}, pl.DataFrame({"label": ["100.0", "120.0"]}))
    assert task.learned == {"mean": 110.0, "std": 10.0}
    outputs = torch.tensor([0.5, 3.0])
    batch = Batch({}, torch.tensor([1.0, 1.0]), ("1", "2"), 2, 2)
    expected = 0.5**2 + 2.0**2 if loss == "mse" else 0.5 * 0.5**2 + (2.0 - 0.5)
    assert float(task.loss(outputs, batch)) == pytest.approx(expected)
    assert values([120.0, 120.0], [115.0, 140.0], task)["loss"] == pytest.approx(expected / 2)


def test_labels_that_are_no_finite_numbers_are_dropped_and_listed() -> None:
    texts = [sentence(n) for n in range(45)]
    labels = [*map(str, range(37)), "1e200", "-1e39", "1_000", "tall", "nan", "-inf", "1,5", None]
    dataset = with_answers(Regression, MSE, pl.DataFrame({"text": texts, "label": labels}))
    assert dataset.audit.dropped_by_reason() == {
        "missing label": 1,
        "label has a decimal comma, write a point": 1,
        "label is no number": 2,
        "label is not finite": 2,
        "label is larger than 3.4e+38": 2,
    }
    details = ["", "1,5", "'1_000'", "'tall'", "nan", "-inf", "1e+200", "-1e+39"]
    assert [row.detail for row in dataset.audit.dropped] == details
    assert dataset.audit.classes == {"train": {}, "validation": {}, "test": {}}


def test_of_several_numbers_for_a_text_the_mean_is_learned() -> None:
    texts = [sentence(n) for n in range(40)] + [sentence(50)] * 3 + [sentence(60)] * 2
    labels = [*map(str, range(40)), "1", "2", "3e0", "7", "7.0"]
    dataset = with_answers(Regression, MSE, pl.DataFrame({"text": texts, "label": labels}))
    assert [(row.row, row.reason, row.detail) for row in dataset.audit.dropped] == [
        ("table:42", "its answers stand in one row", "with table:41"),
        ("table:43", "its answers stand in one row", "with table:41"),
        ("table:45", "duplicate", "of table:44"),
    ]
    kept = dict(pl.concat([dataset.train, dataset.validation, dataset.test]).select("text", "label").rows())
    assert (kept[sentence(50)], kept[sentence(60)], kept[sentence(0)]) == ("2.0", "7.0", "0.0")


def test_nothing_to_learn_is_refused() -> None:
    table = pl.DataFrame({"text": [sentence(n) for n in range(20)], "label": ["3"] * 20})
    with pytest.raises(InputError, match=r"every row has the label 3\.0"):
        with_answers(Regression, MSE, table)


def test_numbers_too_near_to_be_told_apart_are_refused() -> None:
    labels = ["0", "1e-200"] * 10
    table = pl.DataFrame({"text": [sentence(n) for n in range(20)], "label": labels})
    with pytest.raises(InputError, match="every row has nearly the label"):
        with_answers(Regression, MSE, table)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rows", [None, 12])
@pytest.mark.parametrize("odd", [0.5, 7.5])
def test_the_only_other_number_is_in_train(seed: int, rows: int | None, odd: float) -> None:
    table = pl.DataFrame({"text": [sentence(n) for n in range(40)], "label": [odd] + [3.0] * 39})
    dataset = with_answers(Regression, MSE, table, seed=seed, rows=rows)
    assert Regression.learn(MSE, dataset.train).std > 0


def test_so_few_rows_that_train_has_one_number_are_refused() -> None:
    table = pl.DataFrame({"text": [sentence(n) for n in range(40)], "label": [float(n) for n in range(40)]})
    with pytest.raises(InputError, match=r"^data.rows: every row has the label"):
        with_answers(Regression, MSE, table, rows=3)
