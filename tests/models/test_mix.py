"""Mixing weights: what stays to the bit, and what validation chooses."""

import pytest
import torch

from alloytune.errors import InputError
from alloytune.models.combine import GRID, Combination, combine, mean, mix, require_alike, search
from alloytune.models.weights import Weights


def weights(*values: float) -> Weights:
    return {"a": torch.tensor(values), "same": torch.tensor([0.1, 1e-30, 3e7])}


def near(target: Weights, tried: Weights) -> list[float]:
    return [-float((tried["a"] - target["a"]).abs().sum())]


def test_a_mixture_keeps_ends_and_equal_weights_to_the_bit() -> None:
    one, two = weights(0.1, 1e-9), weights(7e5, 1 / 3)
    assert all(torch.equal(mix(one, [two], [0.0])[name], one[name]) for name in one)
    assert all(torch.equal(mix(one, [two], [1.0])[name], two[name]) for name in one)
    assert torch.equal(mean([one, two, one])["same"], one["same"])
    assert torch.equal(mix(one, [two, two], [0.3, 0.9])["same"], one["same"])


def test_an_average_and_a_sum_of_changes() -> None:
    zero, one, two = weights(0.0, 0.0), weights(1.0, 0.0), weights(0.0, 4.0)
    assert mean([zero, one, two])["a"].tolist() == pytest.approx([1 / 3, 4 / 3])
    sources = {"pretrained": zero, "one": one, "two": two}
    mixture = combine(Combination("pretrained", ("one", "two"), (0.5, 2.0)), sources, lambda tried: [0.0])
    assert mixture.weights["a"].tolist() == [0.5, 8.0]
    assert mixture.shares == {"one": 0.5, "two": 2.0}


def test_the_grid_finds_the_best_coefficients() -> None:
    target = mix(weights(0.0, 0.0), [weights(1.0, 0.0), weights(0.0, 4.0)], [0.3, 0.8])
    sources = {"pretrained": weights(0.0, 0.0), "one": weights(1.0, 0.0), "two": weights(0.0, 4.0)}
    chosen = Combination("pretrained", ("one", "two"), (1.0, 1.0), "grid")
    assert combine(chosen, sources, lambda tried: near(target, tried)).shares == {"one": 0.3, "two": 0.8}


@pytest.mark.parametrize("num_coefficients", [1, 2, 3])
def test_a_search_costs_no_more_than_it_says(num_coefficients: int) -> None:
    tried: list[tuple[float, ...]] = []

    def rank(coefficients: tuple[float, ...]) -> list[float]:
        tried.append(coefficients)
        return [float(len(tried))]

    search(rank, num_coefficients)
    limit = Combination("a", ("b",) * num_coefficients, (1.0,) * num_coefficients, "grid").most_evaluations
    assert len(GRID) <= len(tried) == len(set(tried)) <= limit


def test_a_greedy_soup_leaves_out_what_hurts() -> None:
    target = weights(2.0, 2.0)
    sources = {"far": weights(9.0, 9.0), "best": weights(1.5, 2.0), "good": weights(2.6, 2.0)}
    soup = Combination("far", ("best", "good"), (1.0, 1.0), "greedy")
    mixture = combine(soup, sources, lambda tried: near(target, tried))
    assert mixture.shares == {"best": 0.5, "good": 0.5}
    assert torch.equal(mixture.weights["a"], mean([sources["best"], sources["good"]])["a"])


def test_an_equal_source_counts_once() -> None:
    one = weights(1.0, 1.0)
    mixture = combine(Combination("one", ("again",), (0.5,)), {"one": one}, lambda tried: [0.0])
    assert torch.equal(mixture.weights["a"], one["a"])
    assert mixture.shares == {}


@pytest.mark.parametrize("other", [{"a": torch.zeros(3), "same": torch.zeros(3)}, {"same": torch.zeros(3)}])
def test_other_shapes_are_refused(other: Weights) -> None:
    with pytest.raises(InputError, match=r"combine: the model here has a in the shape \[2\], 'lora' .*merge"):
        require_alike(other, weights(1.0, 1.0), "lora", "combine")
