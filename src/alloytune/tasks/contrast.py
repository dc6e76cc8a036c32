"""The contrastive loss of queries against the documents of their batch (InfoNCE, van den Oord et al. 2018)."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def contrastive_loss(queries: Tensor, documents: Tensor, right: Tensor, allowed: Tensor, temperature: float) -> Tensor:
    """Give the cross-entropy of every query's own document among all documents, summed over the queries.

    `queries` [queries, width] and `documents` [documents, width] have length 1; `right` [queries] are the numbers of
    the queries' own documents; documents that are not `allowed` [queries, documents] do not count for a query.

    Computed in float32: in bfloat16, cosines near 1 have steps of 0.004, which at a temperature of 0.05 are 0.08.
    """
    with torch.autocast(queries.device.type, enabled=False):
        logits = queries.float() @ documents.float().T / temperature
        return cross_entropy(logits.masked_fill(~allowed, -torch.inf), right, reduction="sum")


def allowed_documents(query_keys: Tensor, document_keys: Tensor, right: Tensor) -> Tensor:
    """Tell which documents a query may be held against: its own, and all that are right for no query of its text.

    Equal texts have equal keys: [queries] and [documents]. What is right for a query, in this batch, are the documents
    with the text of those that stand in the rows of that query. Gives [queries, documents].
    """
    same_query = query_keys[:, None] == query_keys[None, :]
    right_keys = document_keys[right]
    same_document = right_keys[:, None] == document_keys[None, :]
    is_right = (same_query.float() @ same_document.float()) > 0
    own = torch.zeros_like(is_right)
    own[torch.arange(len(right), device=right.device), right] = True
    return ~is_right | own
