"""Dropout and attention on a processor give what torch's own do: in distribution, and to rounding."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from alloytune.train.on_cpu import attention, dropout, training_ops

CPU = torch.device("cpu")


@pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
def test_each_element_is_dropped_with_its_probability(p: float) -> None:
    torch.manual_seed(0)
    ones = torch.ones(1000, 999, requires_grad=True)
    dropped = dropout(ones, p)
    share = float((dropped == 0).double().mean())
    assert share == pytest.approx(p, abs=5 * (p * (1 - p) / ones.numel()) ** 0.5)
    assert torch.equal(dropped[dropped != 0].unique(), torch.tensor([1 / (1 - p)]))
    dropped.sum().backward()
    assert torch.equal(ones.grad, dropped.detach())  # the gradient goes where the value went


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(0)
    dropped = (dropout(torch.ones(1_000_000), 0.5) == 0).double() - 0.5
    for apart in (1, 2, 3, 4, 8):
        assert abs(float((dropped[apart:] * dropped[:-apart]).mean())) < 0.0015


def test_one_seed_drops_the_same_and_another_does_not() -> None:
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(dropout(torch.ones(7, 5), 0.5))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_all_or_nothing_is_exact(p: float) -> None:
    assert torch.equal(dropout(torch.ones(9), p), torch.ones(9) * (1 - p))


@pytest.mark.parametrize("mask", ["none", "bool", "added"])
def test_attention_is_that_of_torch(mask: str) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(3, 2, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    seen = torch.rand(3, 1, 5, 5) < 0.7
    seen[..., 0] = True
    added = torch.randn(3, 1, 5, 5, dtype=torch.float64)
    given = {"none": None, "bool": seen, "added": added}[mask]
    ours = attention(*inputs, given)
    theirs = functional.scaled_dot_product_attention(*inputs, given)
    assert torch.allclose(ours, theirs, atol=1e-6)  # softmax is in float32
    grads = [torch.autograd.grad(found.square().sum(), inputs) for found in (ours, theirs)]
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*grads, strict=True))


def test_the_context_is_only_for_what_trains_on_a_processor() -> None:
    weight = torch.ones(64, 64, requires_grad=True)

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return functional.dropout(weight, 0.5)

    torch.manual_seed(1)
    ours = dropout(weight, 0.5)
    with training_ops(CPU):
        assert torch.equal(drawn(1), ours)
        assert functional.dropout(weight, 0.5, training=False) is weight
    assert not torch.equal(drawn(1), ours)
