"""The contrastive loss and the ranking of documents, against definitions and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score
from torch.nn.functional import normalize

from alloytune.tasks.contrast import allowed_documents, contrastive_loss
from alloytune.tasks.embedding import Embedding
from alloytune.tasks.ranking import rank_documents


def test_a_copy_of_the_right_document_is_no_wrong_one() -> None:
    queries, documents = torch.tensor([1, 2, 1]), torch.tensor([10, 20, 30, 10, 20, 40])
    allowed = allowed_documents(queries, documents, torch.tensor([0, 1, 2]))
    expected = [
        [True, True, False, False, True, True],  # 30 is right for the same query, the second 10 is a copy
        [True, True, True, True, False, True],
        [False, True, True, False, True, True],
    ]
    assert allowed.tolist() == expected


def test_the_loss_is_that_of_the_batch_without_the_copies() -> None:
    torch.manual_seed(0)
    queries, documents = normalize(torch.randn(2, 4), dim=1), normalize(torch.randn(3, 4), dim=1)
    with_copy = torch.cat([documents, documents[:1]])
    keys = torch.tensor([7, 8, 9, 7])
    right = torch.tensor([0, 1])
    allowed = allowed_documents(torch.tensor([1, 2]), keys, right)
    logits = queries @ documents.T / 0.1
    logits[1] = torch.cat([logits[1]])  # the second query is held against both copies
    alone = -torch.log_softmax(logits[0], 0)[0]
    twice = -torch.log_softmax(torch.cat([logits[1], logits[1, :1]]), 0)[1]
    loss = contrastive_loss(queries, with_copy, right, allowed, 0.1)
    torch.testing.assert_close(loss, alone + twice)


def test_cosines_are_float32_under_autocast() -> None:
    near = normalize(torch.tensor([[1.0, 0.01], [1.0, 0.02], [1.0, 0.03]]), dim=1)
    right, allowed = torch.arange(3), torch.ones(3, 3, dtype=torch.bool)
    exact = contrastive_loss(near, near, right, allowed, 0.001)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(contrastive_loss(near, near, right, allowed, 0.001), exact)


def test_ranks_agree_with_scikit_learn() -> None:
    random = np.random.default_rng(0)
    queries, documents = random.normal(size=(30, 8)), random.normal(size=(40, 8))
    own, same_query = random.integers(40, size=30), random.integers(12, size=30)
    queries = queries[same_query]  # rows of one query are one vector
    ranked = rank_documents(queries, documents, own, same_query, 0.05)
    for row in range(30):
        right = np.zeros(40)
        right[own[same_query == same_query[row]]] = 1
        nearness = documents @ queries[row]
        assert ranked.ndcg[row] == pytest.approx(ndcg_score([right], [nearness], k=10))
        places = [int((nearness >= nearness[document]).sum()) for document in np.flatnonzero(right)]
        assert ranked.reciprocal[row] == pytest.approx(1 / min(places))
        np.testing.assert_allclose(ranked.recall[row], [np.mean(np.array(places) <= top) for top in (1, 5, 10)])


def test_rows_are_counted_by_the_ranks_that_were_found() -> None:
    task = Embedding.blank()
    figures = np.zeros((4, 8))
    figures[:, -2] = [1, 5, 11, 300]
    counted = {row["rank"]: row["rows"] for row in task.details([], [], figures)["ranks"]}
    assert counted == {"1": 1, "2 to 5": 1, "6 to 10": 0, "11 to 100": 1, "over 100": 1}


def test_vectors_that_are_all_the_same_find_nothing() -> None:
    ranked = rank_documents(np.ones((3, 2)), np.ones((20, 2)), np.arange(3), np.arange(3), 1.0)
    assert ranked.ranks.tolist() == [20, 20, 20]
    np.testing.assert_allclose(ranked.losses, np.log(20))
