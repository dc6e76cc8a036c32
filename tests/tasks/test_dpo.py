"""The loss of preferences, against its definition."""

import math

import pytest
import torch

from alloytune.tasks.dpo import answer_logps, dpo_losses


def test_only_the_answer_counts() -> None:
    torch.manual_seed(0)
    logits, ids = torch.randn(5, 7), torch.randint(7, (5,))
    logps = answer_logps(logits, ids, torch.tensor([0, 0, 2, 2, 2]), 3)
    each = torch.log_softmax(logits, -1)[range(5), ids]
    torch.testing.assert_close(logps, torch.stack([each[:2].sum(), torch.tensor(0.0), each[2:].sum()]))


def test_the_loss_starts_at_ln_2_and_falls_with_the_margin() -> None:
    reference = torch.tensor([[-3.0, -2.0], [-3.0, -2.0]])
    losses = dpo_losses(torch.tensor([[-3.0, -2.0], [-2.0, -4.0]]), reference, 0.1)
    assert losses.tolist() == pytest.approx([math.log(2), math.log(1 + math.exp(-0.3))])
