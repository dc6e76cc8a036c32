"""How near a written answer is to the one that was wanted: exact match, chrF, BLEU (sacrebleu), ROUGE (rouge-score).

Every score is made of a few numbers per row that add up over rows: two models are compared, and intervals drawn, from
those numbers alone. For chrF and BLEU they are the library's own counts of n-grams, so that the score of some rows is
the corpus score of exactly these rows; exact match and ROUGE are means over rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
import regex as re  # whose letters hold the signs that are written upon them
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

_WORDS = re.compile(r"[぀-ヿ㐀-䶿一-鿿豈-﫿]|[^\W_]+")  # a sign where signs are words, else a run of letters and digits


class TextScore(Protocol):
    """One way of comparing answers. Values lie from 0 to 1."""

    @property
    def size(self) -> int:
        """Give how many numbers a row has."""

    def figures(self, answer: str, wanted: str) -> list[float]:
        """Give the numbers of one row."""

    def value(self, sums: np.ndarray, rows: float) -> float:
        """Give the score of rows from their numbers' sums; 0 where there are none."""


@dataclass(frozen=True)
class ExactMatch:
    """The share of answers that are the wanted text, white space at the ends aside."""

    size: int = 1

    def figures(self, answer: str, wanted: str) -> list[float]:
        """Give 1 where the texts are the same."""
        return [float(answer.strip() == wanted.strip())]

    def value(self, sums: np.ndarray, rows: float) -> float:
        """Give the share."""
        return float(sums[0] / rows) if rows else 0.0


@dataclass(frozen=True)
class CharacterF:
    """chrF2: the F-score, recall twice as heavy, of character n-grams up to 6 (Popović 2015), over the whole corpus."""

    size: int = 18

    def figures(self, answer: str, wanted: str) -> list[float]:
        """Give n-grams written, n-grams wanted and matches for each of six orders."""
        return _counts(_chrf(), answer, wanted)

    def value(self, sums: np.ndarray, rows: float) -> float:
        """Give the corpus score."""
        return _corpus_score(_chrf(), sums, rows)


@dataclass(frozen=True)
class Bleu:
    """BLEU of up to four words (Papineni et al. 2002), over the whole corpus; `words` says how text is cut."""

    words: str = "13a"
    size: int = 10

    def figures(self, answer: str, wanted: str) -> list[float]:
        """Give both lengths, then matches and n-grams written for each of four orders."""
        return _counts(_bleu(self.words), answer, wanted)

    def value(self, sums: np.ndarray, rows: float) -> float:
        """Give the corpus score."""
        return _corpus_score(_bleu(self.words), sums, rows)


@dataclass(frozen=True)
class Rouge:
    """The mean over rows of ROUGE's F-score (Lin 2004): `rouge1` or `rouge2` of words, `rougeL` of the longest chain.

    Words are runs of letters and digits, and single signs of Chinese and Japanese, which the library's own cut drops.
    """

    kind: str
    size: int = 1

    def figures(self, answer: str, wanted: str) -> list[float]:
        """Give the F-score."""
        return [float(_rouge(self.kind).score(wanted, answer)[self.kind].fmeasure)]

    def value(self, sums: np.ndarray, rows: float) -> float:
        """Give the mean."""
        return float(sums[0] / rows) if rows else 0.0


def text_scores(names: Sequence[str], bleu_words: str = "13a") -> dict[str, TextScore]:
    """Give the scores of these names, which may hold other metrics as well."""
    known: dict[str, TextScore] = {
        "exact_match": ExactMatch(),
        "chrf": CharacterF(),
        "bleu": Bleu(bleu_words),
        "rouge_1": Rouge("rouge1"),
        "rouge_2": Rouge("rouge2"),
        "rouge_l": Rouge("rougeL"),
    }
    return {name: known[name] for name in names if name in known}


class _Words:
    def tokenize(self, text: str) -> list[str]:
        words: list[str] = _WORDS.findall(text.lower())
        return words


def _counts(metric: Any, answer: str, wanted: str) -> list[float]:
    (found,) = metric._extract_corpus_statistics([answer], [[wanted]])  # what the library draws its own intervals from
    return [float(number) for number in found]


def _corpus_score(metric: Any, sums: np.ndarray, rows: float) -> float:
    if not rows:
        return 0.0
    return float(metric._compute_score_from_stats([round(number) for number in sums]).score) / 100


@cache
def _chrf() -> Any:
    return CHRF()


@cache
def _bleu(words: str) -> Any:
    return BLEU(tokenize=words)


@cache
def _rouge(kind: str) -> Any:
    return RougeScorer([kind], tokenizer=_Words())
