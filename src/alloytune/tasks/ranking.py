"""How well queries find their documents among all documents of a split."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

TOP = (1, 5, 10)
_BLOCK = 1024  # queries whose similarities to all documents are in memory together


@dataclass(frozen=True)
class Ranked:
    """What became of each row's query.

    `ranks` [rows]: the place of the row's document among all documents but the other right ones, 1 the best. `recall`
    [rows, TOP], `ndcg` (at 10) and `reciprocal` [rows] are those of the row's query with all its right documents.
    `losses` [rows]: cross-entropy of the row's document among all but the other right ones.
    """

    ranks: np.ndarray
    recall: np.ndarray
    ndcg: np.ndarray
    reciprocal: np.ndarray
    losses: np.ndarray


def rank_documents(
    queries: np.ndarray, documents: np.ndarray, own: np.ndarray, same_query: np.ndarray, temperature: float
) -> Ranked:
    """Rank the documents for each row's query, by cosine.

    `queries` [rows, width], `documents` [documents, width], each document once; `own` [rows] is the number of the
    row's document; rows with equal `same_query` [rows] ask the same and share their right documents.
    A document as near as the right one stands before it, so that vectors that are all the same find nothing.
    """
    right = _right_documents(own, same_query)
    parts = [
        _rank_row(similarity, own[row], right[same_query[row]], temperature)
        for row, similarity in _similarities(queries, documents)
    ]
    ranks, recall, ndcg, reciprocal, losses = zip(*parts, strict=True)
    return Ranked(np.array(ranks), np.array(recall), np.array(ndcg), np.array(reciprocal), np.array(losses))


def _similarities(queries: np.ndarray, documents: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(queries), _BLOCK):
        block = queries[start : start + _BLOCK].astype(np.float64) @ documents.T.astype(np.float64)
        yield from enumerate(block, start)


def _right_documents(own: np.ndarray, same_query: np.ndarray) -> dict[int, np.ndarray]:
    found: dict[int, set[int]] = {}
    for query, document in zip(same_query.tolist(), own.tolist(), strict=True):
        found.setdefault(query, set()).add(document)
    return {query: np.array(sorted(documents)) for query, documents in found.items()}


def _rank_row(
    similarity: np.ndarray, own: int, right: np.ndarray, temperature: float
) -> tuple[int, list[float], float, float, float]:
    """Rank all documents [documents] for one query."""
    wrong = np.delete(similarity, right)
    rank = 1 + int((wrong >= similarity[own]).sum())
    better = np.sort([int((wrong >= similarity[document]).sum()) for document in right])
    places = better + np.arange(1, len(right) + 1)  # of all right documents, best first
    recall = [float((places <= top).mean()) for top in TOP]
    gains = 1 / np.log2(1 + places[places <= 10])
    ideal = 1 / np.log2(1 + np.arange(1, min(len(right), 10) + 1))
    against = np.append(wrong, similarity[own]) / temperature
    largest = against.max()
    loss = largest + float(np.log(np.exp(against - largest).sum())) - similarity[own] / temperature
    return rank, recall, float(gains.sum() / ideal.sum()), float(1 / places[0]), float(loss)
