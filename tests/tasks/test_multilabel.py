"""Sets of labels: values by hand and by scikit-learn, thresholds, and cells that cannot be read."""

import json
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.special import expit
from sklearn.metrics import f1_score, label_ranking_average_precision_score, log_loss

from alloytune.tasks.multilabel import Multilabel
from alloytune.tasks.task import Example, scores_of
from alloytune.tasks.thresholds import average_precision, best_threshold
from data.example_tables import sentence, with_answers

JSON: dict[str, Any] = {"separator": None, "threshold": "tuned"}
TEXTS = [sentence(n) for n in range(40)]
LABELS = ["a", "b", "c"]


def examples(truths: np.ndarray) -> list[Example]:
    return [Example(str(n), {}, np.flatnonzero(row).tolist()) for n, row in enumerate(truths)]


def test_values_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    truths = (random.random((80, 3)) < [0.5, 0.3, 0.1]).astype(int)
    logits = random.normal(0, 1, (80, 3)) + 2 * truths
    task = Multilabel(tuple(LABELS), (0.5, 0.6, 0.7))
    scores = scores_of(task, list(logits), examples(truths))
    chances = 1 / (1 + np.exp(-logits))
    predicted = chances >= [0.5, 0.6, 0.7]
    assert scores.values["micro_f1"] == pytest.approx(f1_score(truths, predicted, average="micro"))
    assert scores.values["macro_f1"] == pytest.approx(f1_score(truths, predicted, average="macro"))
    assert scores.values["average_precision"] == pytest.approx(label_ranking_average_precision_score(truths, logits))
    assert scores.values["loss"] == pytest.approx(np.mean([log_loss(truths[:, n], chances[:, n]) for n in range(3)]))
    own = f1_score(truths, predicted, average=None)
    assert [entry["f1"] for entry in scores.details["per_label"]] == pytest.approx(own.tolist())


def test_macro_f1_is_of_the_labels_that_occur() -> None:
    """As scikit-learn's with zero_division=nan, and as classification has it."""
    task, truths = Multilabel(("a", "b", "c"), (0.5,) * 3), np.array([[1, 0, 0], [0, 1, 0]])
    assert scores_of(task, list(20.0 * truths - 10), examples(truths)).values["macro_f1"] == 1.0
    nothing = np.zeros((2, 3), int)
    assert scores_of(task, list(nothing - 10.0), examples(nothing)).values["macro_f1"] == 0.0


def test_average_precision_by_hand() -> None:
    assert average_precision(np.array([1, 0, 1]), np.array([3.0, 2.0, 1.0])) == pytest.approx(5 / 6)
    assert average_precision(np.array([0, 0, 0]), np.array([3.0, 2.0, 1.0])) == 1.0


def test_the_head_begins_at_the_shares_of_the_labels() -> None:
    task = Multilabel.learn(JSON, pl.DataFrame({"labels": ['["a"]'] * 30 + ["[]"] * 69 + ['["a", "b"]']}))
    assert expit(task.first_outputs) == pytest.approx([0.31, 0.01], abs=0.01)


def test_thresholds_are_tuned() -> None:
    truths = np.array([[1, 0], [1, 0], [0, 1], [0, 1]])
    chances = np.array([[0.30, 0.70], [0.35, 0.60], [0.10, 0.90], [0.20, 0.95]])
    logits = list(np.log(chances / (1 - chances)))
    assert best_threshold(truths[:, [0]], chances[:, [0]]) == 0.3
    assert best_threshold(truths[:, [1]], chances[:, [1]]) == 0.71
    one = Multilabel(("a", "b"), (0.5, 0.5), "tuned").tuned(logits, examples(truths))
    assert len(set(one.thresholds)) == 1
    own = Multilabel(("a", "b"), (0.5, 0.5), "tuned-per-label").tuned(logits, examples(truths))
    assert own.thresholds == (0.3, 0.71)
    assert own.table(logits, examples(truths))["labels"].to_list() == [["a"], ["a"], ["b"], ["b"]]
    assert own.config["thresholds"] == [0.3, 0.71]
    fixed = Multilabel.learn({**JSON, "threshold": 0.4}, pl.DataFrame({"labels": ['["a"]']}))
    assert fixed.tuned([logit[:1] for logit in logits], examples(truths[:, :1])).thresholds == (0.4,)
    assert Multilabel.recall(JSON, json.loads(json.dumps(own.learned))).thresholds == own.thresholds


@pytest.mark.parametrize("separator", [None, ";"])
def test_lists_are_read_in_any_order(separator: str | None) -> None:
    cells = [["b", "a"], ["a", "b", "a"], [], ["c", "10", "2"]] * 10
    written = [json.dumps(cell) if separator is None else " ; ".join(cell) or "[]" for cell in cells]
    table = pl.DataFrame({"text": TEXTS, "labels": written})
    dataset = with_answers(Multilabel, {**JSON, "separator": separator}, table)
    rows = pl.concat([dataset.train, dataset.validation, dataset.test])
    assert set(rows["labels"]) == {'["a", "b"]', "[]", '["2", "10", "c"]'}
    assert Multilabel.learn(JSON, dataset.train).labels == ("2", "10", "a", "b", "c")


def test_a_row_for_each_label_of_a_text_is_one_row_with_all() -> None:
    table = pl.DataFrame({"text": [text for text in TEXTS for _ in range(2)], "labels": ["b; c", "a", "b", "b"] * 20})
    dataset = with_answers(Multilabel, {**JSON, "separator": ";"}, table)
    assert dataset.audit.dropped_by_reason() == {"its answers stand in one row": 20, "duplicate": 20}
    rows = pl.concat([dataset.train, dataset.validation, dataset.test])
    assert dict(rows["labels"].value_counts().rows()) == {'["a", "b", "c"]': 20, '["b"]': 20}


def test_cells_that_are_no_lists_are_dropped_and_listed() -> None:
    odd = ["a, b", "{}", "[[]]", "3", None]
    cells = [*(json.dumps([label]) for label in LABELS * 11), *odd]
    audit = with_answers(Multilabel, JSON, pl.DataFrame({"text": TEXTS[:38], "labels": cells})).audit
    assert audit.dropped_by_reason() == {"missing labels": 1, "labels are no list": 4}
    assert "separator" in audit.dropped[1].detail
