"""What can be reached without a pretrained model: scikit-learn on the same rows.

Each function takes the splits of a run as tables, and gives the test scores of its baselines by name. What is to be
chosen is chosen on validation.
"""

import json
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import polars as pl
from sklearn.base import clone
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    label_ranking_average_precision_score,
    mean_absolute_error,
    r2_score,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import MultiLabelBinarizer
from sklearn.svm import LinearSVC

Splits = dict[str, pl.DataFrame]
Scores = dict[str, float]

STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
TOP = 10
SIDES = ("chosen", "rejected")


def reviews(splits: Splits) -> dict[str, Scores]:
    """TF-IDF of one to three characters and a linear support vector machine."""
    matrices = tfidf(splits, "text", analyzer="char", ngram_range=(1, 3), sublinear_tf=True, min_df=2)
    labels = {split: table["label"].to_list() for split, table in splits.items()}
    fitted = [LinearSVC(C=strength).fit(matrices["train"], labels["train"]) for strength in STRENGTHS]
    best = max(fitted, key=lambda model: model.score(matrices["validation"], labels["validation"]))
    found = best.predict(matrices["test"])
    scores = {
        "accuracy": accuracy_score(labels["test"], found),
        "macro_f1": f1_score(labels["test"], found, average="macro"),
    }
    return {"TF-IDF of characters, linear SVM": scores}


def entities(splits: Splits) -> dict[str, Scores]:
    """A list of the entities seen in training, and a conditional random field over characters."""
    from alloytune.tasks.words import read_sentences

    sentences = {split: read_sentences(table) for split, table in splits.items()}
    truth = [sentence.tags for sentence in sentences["test"]]
    known = known_entities(splits["train"])
    listed = [tags_by_list(sentence.words, known) for sentence in sentences["test"]]
    found = {"entities seen in training": entity_scores(truth, listed)}
    if find_spec("sklearn_crfsuite"):
        from sklearn_crfsuite import CRF

        features = {
            split: [[near(one.words, place) for place in range(len(one.words))] for one in rows]
            for split, rows in sentences.items()
        }
        tags = {split: [one.tags for one in rows] for split, rows in sentences.items()}
        fitted = [CRF(c1=c, c2=c, max_iterations=100).fit(features["train"], tags["train"]) for c in (0.01, 0.1)]
        validated = [entity_scores(tags["validation"], model.predict(features["validation"]))["f1"] for model in fitted]
        best = fitted[int(np.argmax(validated))]
        found["CRF over characters"] = entity_scores(truth, best.predict(features["test"]))
    return found


def tags(splits: Splits) -> dict[str, Scores]:
    """TF-IDF of words and pairs of words, a logistic regression and a threshold for each label."""
    matrices = tfidf(splits, "text", ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    lists = {split: [json.loads(cell) for cell in table["labels"]] for split, table in splits.items()}
    columns = MultiLabelBinarizer().fit(lists["train"])
    truth = {split: columns.transform(rows) for split, rows in lists.items()}
    fitted = [
        OneVsRestClassifier(LogisticRegression(C=strength, max_iter=1000)).fit(matrices["train"], truth["train"])
        for strength in STRENGTHS[3:]
    ]
    chances = [model.predict_proba(matrices["validation"]) for model in fitted]
    best = int(np.argmax([label_ranking_average_precision_score(truth["validation"], one) for one in chances]))
    thresholds = [best_threshold(*column) for column in zip(chances[best].T, truth["validation"].T, strict=True)]
    answered = fitted[best].predict_proba(matrices["test"])
    found = answered >= np.array(thresholds)
    scores = {
        "micro_f1": f1_score(truth["test"], found, average="micro", zero_division=0),
        "macro_f1": f1_score(truth["test"], found, average="macro", zero_division=0),
        "average_precision": label_ranking_average_precision_score(truth["test"], answered),
    }
    return {"TF-IDF of words, logistic regression": scores}


def best_threshold(chances: np.ndarray, truth: np.ndarray) -> float:
    """Give the threshold, by hundredths, with the best F1 of one label."""
    candidates = np.arange(0.01, 1.0, 0.01)
    return float(max(candidates, key=lambda threshold: f1_score(truth, chances >= threshold, zero_division=0)))


def sizes(splits: Splits) -> dict[str, Scores]:
    """TF-IDF of words and pairs of words and a ridge regression; and the mean of the training rows."""
    from scipy.stats import pearsonr, spearmanr

    matrices = tfidf(splits, "text", ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    truth = {split: table["label"].cast(pl.Float64).to_numpy() for split, table in splits.items()}
    fitted = [Ridge(alpha=strength).fit(matrices["train"], truth["train"]) for strength in STRENGTHS]
    best = min(
        fitted, key=lambda model: mean_absolute_error(truth["validation"], model.predict(matrices["validation"]))
    )
    found = best.predict(matrices["test"])
    ridge = {
        "r2": r2_score(truth["test"], found),
        "mae": mean_absolute_error(truth["test"], found),
        "pearson": pearsonr(truth["test"], found).statistic,
        "spearman": spearmanr(truth["test"], found).statistic,
    }
    mean = np.full(len(truth["test"]), truth["train"].mean())
    middle = {"r2": r2_score(truth["test"], mean), "mae": mean_absolute_error(truth["test"], mean)}
    return {"the mean of the training rows": middle, "TF-IDF of words, ridge regression": ridge}


def synopses(splits: Splits) -> dict[str, Scores]:
    """Cosines of TF-IDF, with the documents' own frequencies of words; the right document is one of all of them."""
    queries, documents = splits["test"]["query"], splits["test"]["document"]
    vectors = TfidfVectorizer(sublinear_tf=True, stop_words="english").fit(documents)
    similarity = (vectors.transform(queries) @ vectors.transform(documents).T).toarray()
    own = similarity.diagonal()[:, None]
    ranks = (similarity >= own).sum(axis=1)  # as near as the right one counts as before it
    scores = {
        "recall_at_10": (ranks <= TOP).mean(),
        "ndcg_at_10": np.where(ranks <= TOP, 1 / np.log2(ranks + 1), 0).mean(),
        "mrr": (1 / ranks).mean(),
    }
    return {"TF-IDF of words, cosine": {metric: float(score) for metric, score in scores.items()}}


def preferences(splits: Splits) -> dict[str, Scores]:
    """The longer answer; and a logistic regression on what TF-IDF of words tells between both answers."""
    texts = {
        split: [table[side].map_elements(answer_of, pl.String) for side in SIDES] for split, table in splits.items()
    }
    longer = (texts["test"][0].str.len_chars() > texts["test"][1].str.len_chars()).mean()
    vectors = TfidfVectorizer(sublinear_tf=True, min_df=2).fit(pl.concat(texts["train"]))
    between = {
        split: vectors.transform(chosen) - vectors.transform(rejected) for split, (chosen, rejected) in texts.items()
    }
    fitted = [
        fit_pairs(LogisticRegression(C=strength, fit_intercept=False), between["train"]) for strength in STRENGTHS
    ]
    best = max(fitted, key=lambda model: (model.decision_function(between["validation"]) > 0).mean())
    right = (best.decision_function(between["test"]) > 0).mean()
    return {
        "the longer answer": {"accuracy": float(longer or 0)},
        "TF-IDF of words, logistic regression": {"accuracy": float(right)},
    }


def fit_pairs(model: Any, between: Any) -> Any:
    """Fit a model to tell a pair from the same pair turned round."""
    from scipy.sparse import vstack

    return clone(model).fit(vstack([between, -between]), [1] * between.shape[0] + [0] * between.shape[0])


def answer_of(cell: str) -> str:
    """Give the words of an answer: a text, a message, or a list of messages."""
    try:
        found = json.loads(cell)
    except ValueError:
        return cell
    messages = found if isinstance(found, list) else [found]
    return "\n".join(message.get("value", message.get("content", "")) for message in messages)


def tfidf(splits: Splits, column: str, **settings: Any) -> dict[str, Any]:
    """Give TF-IDF matrices of a column, learned on the training rows."""
    vectors = TfidfVectorizer(**settings).fit(splits["train"][column])
    return {split: vectors.transform(table[column]) for split, table in splits.items()}


def known_entities(train: pl.DataFrame) -> dict[str, str]:
    """Give the entities of the training rows, each with its most frequent type."""
    counts: dict[str, Counter[str]] = {}
    for text, cell in zip(train["text"], train["spans"], strict=True):
        for start, end, kind in json.loads(cell):
            counts.setdefault(text[start:end], Counter())[kind] += 1
    return {entity: kinds.most_common(1)[0][0] for entity, kinds in counts.items()}


def tags_by_list(words: Sequence[str], known: dict[str, str]) -> list[str]:
    """Tag the longest known entity from each place on."""
    longest = max(map(len, known))
    tags, place = ["O"] * len(words), 0
    while place < len(words):
        ends = range(min(len(words), place + longest), place, -1)
        end = next((end for end in ends if "".join(words[place:end]) in known), None)
        if end is not None:
            kind = known["".join(words[place:end])]
            tags[place:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - place - 1)]
        place = end or place + 1
    return tags


def near(words: Sequence[str], place: int) -> dict[str, Any]:
    """Give a character with its neighbours, two to each side, and the pairs that they make."""
    around = {n: words[place + n] if 0 <= place + n < len(words) else "-" for n in range(-2, 3)}
    pairs = {f"{n},{n + 1}": around[n] + around[n + 1] for n in range(-2, 2)}
    return {**{str(n): word for n, word in around.items()}, **pairs, "digit": words[place].isdigit()}


def entity_scores(truth: Any, found: Any) -> Scores:
    """Give F1, precision and recall of entities, right in type and both ends."""
    from seqeval.metrics import f1_score, precision_score, recall_score

    measures = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
    return {name: float(measure(truth, found)) for name, measure in measures.items()}
