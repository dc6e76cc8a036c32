"""Dropout, attention and linear layers on a processor give what torch's own do: in distribution, and to rounding."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from alloytune.train.on_cpu import FEWEST_LOWERED, attention, dropout, training_ops

CPU = torch.device("cpu")


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.93, 0.999])
def test_each_element_is_dropped_with_its_probability(p: float) -> None:
    torch.manual_seed(0)
    times, ones = 1000, torch.ones(1000)
    share = sum(float((dropout(ones, p) == 0).double().mean()) for _ in range(times)) / times
    by_element, by_bound = p * (1 - p) / len(ones), 1 / 256**2 / 4  # of a time: what is drawn, and the bound for it
    assert share == pytest.approx(p, abs=5 * ((by_element + by_bound) / times) ** 0.5)


def test_a_gradient_goes_where_the_value_went() -> None:
    torch.manual_seed(0)
    ones = torch.ones(100, 99, requires_grad=True)
    dropped = dropout(ones, 0.1)
    assert torch.equal(dropped[dropped != 0].unique(), torch.tensor([1 / 0.9]))
    dropped.sum().backward()
    assert torch.equal(ones.grad, dropped.detach())


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


@pytest.mark.parametrize("masked", [False, True])
def test_weights_of_attention_are_dropped_and_their_gradient_with_them(masked: bool) -> None:
    torch.manual_seed(0)
    query, key, value = inputs = [torch.randn(3, 2, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    mask = torch.randn(3, 1, 5, 5, dtype=torch.float64, requires_grad=True) if masked else None
    torch.manual_seed(1)
    ours = attention(*inputs, mask, p=0.3, scale=0.7)
    torch.manual_seed(1)
    kept = dropout(torch.ones(3, 2, 5, 5, dtype=torch.float64), 0.3)
    plain = ((query * 0.7 @ key.mT + (0 if mask is None else mask)).softmax(-1) * kept) @ value
    assert torch.allclose(ours, plain, atol=1e-6)  # softmax is in float32
    learned = inputs if mask is None else [*inputs, mask]
    grads = [torch.autograd.grad(found.square().sum(), learned) for found in (ours, plain)]
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*grads, strict=True))


@pytest.mark.parametrize("keys", [FEWEST_LOWERED - 3, FEWEST_LOWERED + 1])
def test_gradients_of_attention_in_bfloat16_are_rounded_ones(keys: int) -> None:
    torch.manual_seed(0)
    exact = [torch.randn(4, 2, keys, 32).bfloat16().float().requires_grad_() for _ in range(3)]
    lowered = [each.detach().bfloat16().requires_grad_() for each in exact]
    grads = [torch.autograd.grad(attention(*each).float().square().sum(), each) for each in (exact, lowered)]
    for expected, found in zip(*grads, strict=True):
        assert float((found - expected).norm() / expected.norm()) < 0.02


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


def make_linears() -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    still, *moving = (nn.Linear(16, 16) for _ in range(3))
    still.requires_grad_(False)
    return still, moving[0], moving[1]


def lowered_pass(context: AbstractContextManager[Any]) -> tuple[Tensor, list[Tensor]]:
    """Give outputs and gradients of three layers that read one input, of which one stands still."""
    still, one, other = make_linears()
    inputs = torch.randn(4, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), context:
        found = still(inputs) + one(inputs) + other(inputs)
    return found, list(torch.autograd.grad(found.float().square().sum(), [inputs, one.weight, other.weight]))


def test_layers_that_share_what_autocast_lowers_give_the_same() -> None:
    expected, expected_grads = lowered_pass(nullcontext())
    found, grads = lowered_pass(training_ops(CPU))
    assert torch.equal(found, expected)
    for one, other in zip(grads, expected_grads, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=float(other.abs().max()) * 2**-7)  # sums of bfloat16


@pytest.mark.parametrize("how", ["in place", "other memory"])
def test_a_lowered_copy_of_a_weight_is_never_stale(how: str) -> None:
    still, _, _ = make_linears()
    inputs = torch.randn(4, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), training_ops(CPU):
        first = still(inputs)
        assert torch.equal(still(inputs), first)
        with torch.no_grad():
            if how == "in place":
                still.weight.mul_(2)
            else:
                still.weight.data = still.weight.data * 2
        changed = still(inputs)
        still.weight.requires_grad_(True)
        with torch.no_grad():
            still.weight.zero_()
        assert torch.equal(still(inputs), still.bias.to(torch.bfloat16).expand(4, 16))
    assert torch.allclose(changed - still.bias, 2 * (first - still.bias), atol=0.05)


def test_a_lowered_input_is_that_of_now() -> None:
    _, moving, _ = make_linears()
    inputs = torch.randn(4, 16)
    with torch.autocast("cpu", torch.bfloat16), training_ops(CPU):
        moving(inputs)
        inputs.zero_()
        assert torch.equal(moving(inputs), moving.bias.to(torch.bfloat16).expand(4, 16))
