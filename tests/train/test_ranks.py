"""AdaLoRA's ranks: what counts as important, what is cut and when, and what keeps factors orthogonal."""

from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alloytune.models.adapters import Factors
from alloytune.models.methods import AdaloraSettings
from alloytune.train.optimizers import Optimizer
from alloytune.train.ranks import BETA, Ranks

RATE = 0.1


def layers(*ranks: int) -> list[Factors]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))

    return [Factors(draw(rank, 5), draw(rank, 1), draw(4, rank)) for rank in ranks]


def optimizer(factors: list[Factors]) -> Optimizer:
    return Optimizer([torch.optim.SGD([weight for layer in factors for weight in layer], lr=RATE)])


def step(ranks: Ranks, steps: Optimizer, factors: list[Factors], seed: int, share: float = 0.0) -> list[Tensor]:
    """Take one step with gradients drawn from a seed; give them."""
    generator = torch.Generator().manual_seed(seed)
    weights = [weight for layer in factors for weight in layer]
    gradients = [torch.randn(weight.shape, generator=generator, dtype=torch.float64) for weight in weights]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient.clone()
    ranks.at(share)
    with ranks.around(steps):
        steps.step()
    steps.zero_grad()
    return gradients


def standing(factors: list[Factors]) -> list[list[bool]]:
    return [(layer.e != 0).flatten().tolist() for layer in factors]


def test_an_adapter_that_begins_without_a_budget_learns() -> None:
    """Its E is zero where the stage that attached it did not train it, which is not to say that all of it was cut."""
    factors = layers(3)
    with torch.no_grad():
        factors[0].e.zero_()
    ranks, steps = Ranks(factors, lambda share: None), optimizer(factors)
    step(ranks, steps, factors, 0)
    assert standing(factors) == [[True] * 3]


def test_what_is_cut_is_what_the_papers_formulas_find_weakest() -> None:
    factors = layers(4, 3)
    ranks, steps = Ranks(factors, lambda share: 2.0), optimizer(factors)
    averages: dict[Any, tuple[Tensor, Tensor]] = {}
    for seed in range(3):
        before = [weight.detach().clone() for layer in factors for weight in layer]
        gradients = step(ranks, steps, factors, seed)
        for place, (weight, gradient) in enumerate(zip(before, gradients, strict=True)):
            importance, uncertainty = averages.get(place, (torch.zeros_like(weight), torch.zeros_like(weight)))
            now = (weight * gradient).abs()
            importance = BETA * importance + (1 - BETA) * now
            averages[place] = importance, BETA * uncertainty + (1 - BETA) * (now - importance).abs()
        found = []
        for layer in range(2):
            of_a, of_e, of_b = (averages[3 * layer + part][0] * averages[3 * layer + part][1] for part in range(3))
            found += [float(of_a[row].mean() + of_e[row, 0] + of_b[:, row].mean()) for row in range(len(of_e))]
        strongest = sorted(range(7), key=lambda number: -found[number])[:4]
        assert list(chain.from_iterable(standing(factors))) == [number in strongest for number in range(7)]


def test_the_budget_is_whole_at_first_falls_as_a_cube_and_stays() -> None:
    budget = AdaloraSettings(8, 12).budget
    assert [budget(share) for share in (0.0, 0.1, 0.3, 0.5, 1.0)] == pytest.approx([12, 12, 8.5, 8, 8])


def test_ranks_that_are_not_cut_further_keep_what_is_cut() -> None:
    factors = layers(4)
    with torch.no_grad():
        factors[0].e[1] = 0.0
    ranks, steps = Ranks(factors, lambda share: None), optimizer(factors)
    step(ranks, steps, factors, 0)
    assert standing(factors) == [[True, False, True, True]]


def test_an_adapter_that_rests_is_left_alone() -> None:
    factors = layers(4)
    ranks, steps = Ranks(factors, lambda share: 1.0, orthogonal=1.0), optimizer(factors)
    with ranks.around(steps):
        steps.step()
    assert standing(factors) == [[True] * 4]


def test_the_penalty_moves_factors_as_its_gradient_says() -> None:
    factors, others = layers(3, 2), layers(3, 2)
    plain, with_penalty = optimizer(others), optimizer(factors)
    step(Ranks(others, lambda share: None), plain, others, 0)
    reference = layers(3, 2)
    norms = [norm for a, _, b in reference for norm in (_off(a @ a.T), _off(b.T @ b))]
    (0.5 * torch.stack(norms).mean()).backward()
    step(Ranks(factors, lambda share: None, orthogonal=0.5), with_penalty, factors, 0)
    for layer, other, its_reference in zip(factors, others, reference, strict=True):
        for weight, without, start in zip(layer, other, its_reference, strict=True):
            pull = torch.zeros_like(start) if start.grad is None else start.grad
            assert torch.allclose(weight, without - RATE * pull, atol=1e-12)


def _off(gram: Tensor) -> Tensor:
    return ((gram - torch.eye(len(gram), dtype=gram.dtype)) ** 2).sum().sqrt()


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW], ids=["sgd", "adamw"])
def test_averages_lie_in_the_optimizers_memory(make: Callable[..., torch.optim.Optimizer]) -> None:
    factors = layers(2)
    steps = Optimizer([make(list(factors[0]), lr=RATE)])
    step(Ranks(factors, lambda share: None), steps, factors, 0)
    assert all({"importance", "uncertainty"} <= steps.parts[0].state[weight].keys() for weight in factors[0])
