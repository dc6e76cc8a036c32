"""Scores of written answers: the libraries' own, from numbers that add up over rows."""

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from alloytune.tasks.text_scores import TextScore, text_scores

WRITTEN = ["The cat sat on the mat.", "A dog barked at the old man", "nothing", "完全 same"]
WANTED = ["The cat sat on a mat.", "A dog barked at the old man", "everything else", "完全 same"]
SCORES = text_scores(["exact_match", "loss", "chrf", "bleu", "rouge_1", "rouge_2", "rouge_l"])


def value(score: TextScore, rows: slice = slice(None)) -> float:
    """Score some rows from the sums of their numbers."""
    figures = np.array([score.figures(*pair) for pair in zip(WRITTEN, WANTED, strict=True)])[rows]
    assert figures.shape[1] == score.size
    return score.value(figures.sum(0), len(figures))


@pytest.mark.parametrize("rows", [slice(None), slice(1, 3)])
def test_sums_of_rows_give_the_corpus_scores_of_the_library(rows: slice) -> None:
    written, wanted = WRITTEN[rows], WANTED[rows]
    assert value(SCORES["chrf"], rows) == pytest.approx(CHRF().corpus_score(written, [wanted]).score / 100)
    assert value(SCORES["bleu"], rows) == pytest.approx(BLEU().corpus_score(written, [wanted]).score / 100)


@pytest.mark.parametrize(("name", "kind"), [("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")])
def test_rouge_is_the_library_s_where_its_words_are(name: str, kind: str) -> None:
    scorer = RougeScorer([kind])
    pairs = zip(WANTED[:3], WRITTEN[:3], strict=True)
    expected = np.mean([scorer.score(wanted, written)[kind].fmeasure for wanted, written in pairs])
    assert value(SCORES[name], slice(0, 3)) == pytest.approx(expected)


def test_rouge_reads_chinese_by_signs() -> None:
    (found,) = SCORES["rouge_1"].figures("天气很好", "天气不好")
    assert found == pytest.approx(3 / 4)


def test_exact_match_counts_rows() -> None:
    assert value(SCORES["exact_match"]) == 0.5


@pytest.mark.parametrize("name", SCORES)
def test_no_rows_and_empty_answers_score_nothing(name: str) -> None:
    score = SCORES[name]
    assert score.value(np.zeros(score.size), 0) == 0
    assert score.value(np.array(score.figures("", "a word")), 1) == 0
    perfect = score.value(np.array(score.figures("one two three four five", "one two three four five")), 1)
    assert perfect == pytest.approx(1)
