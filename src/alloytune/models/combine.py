"""Mixing the weights of several models of one shape."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Literal

import torch
from torch import Tensor

from alloytune.errors import InputError
from alloytune.models.weights import Weights

GRID = tuple(n / 10 for n in range(11))  # what is tried where validation chooses
ROUNDS = 2  # over the coefficients, where there are several

Rank = Callable[[Weights], list[float]]
Coefficients = tuple[float, ...]


@dataclass(frozen=True)
class Combination:
    """What is mixed: `start` plus coefficients times what each of `others` differs from it.

    Both are names of snapshots. `chosen` says how the coefficients are found: fixed, on a grid, or by leaving some of
    the others out (greedy).
    """

    start: str
    others: tuple[str, ...]
    coefficients: Coefficients
    chosen: Literal["fixed", "grid", "greedy"] = "fixed"

    @property
    def most_evaluations(self) -> int:
        """Give how often a choice scores a model at most."""
        num_others = len(self.others)
        rounds = ROUNDS if num_others > 1 else 1
        return {"fixed": 0, "grid": rounds * len(GRID) * num_others, "greedy": 2 * num_others + 1}[self.chosen]


@dataclass(frozen=True)
class Mixture:
    """Mixed weights, and the share of each source in words for the record."""

    weights: Weights
    shares: dict[str, float]


def combine(combination: Combination, sources: Mapping[str, Weights], rank: Rank) -> Mixture:
    """Mix the weights of `sources`, by name; `rank` tells how good weights are on validation, larger is better.

    A source that is missing is the same as another one that is there, and counts once.
    """
    if combination.chosen == "greedy":
        return _greedy_soup(sources, rank)
    start = sources[combination.start]
    pairs = zip(combination.others, combination.coefficients, strict=True)
    fixed = {name: coefficient for name, coefficient in pairs if name in sources}
    others = [sources[name] for name in fixed]

    def mixed(coefficients: Coefficients) -> Weights:
        return mix(start, others, coefficients)

    coefficients = tuple(fixed.values())
    if combination.chosen == "grid" and others:
        coefficients = search(lambda tried: rank(mixed(tried)), len(others))
    return Mixture(mixed(coefficients), dict(zip(fixed, coefficients, strict=True)))


def mix(start: Weights, others: Sequence[Weights], coefficients: Sequence[float]) -> Weights:
    """Give start + sum of coefficient * (other - start), by name.

    Summed in float64, so that equal weights stay as they are to the bit, and a coefficient of 1 gives the other one.
    """
    return {name: _mix(value, [other[name] for other in others], coefficients) for name, value in start.items()}


def mean(sources: Sequence[Weights]) -> Weights:
    """Give the plain mean."""
    return mix(sources[0], sources[1:], list(repeat(1 / len(sources), len(sources) - 1)))


def search(rank: Callable[[Coefficients], list[float]], num_coefficients: int) -> Coefficients:
    """Choose every coefficient from GRID in turn, the others held, over ROUNDS; they start at equal shares."""
    ranks: dict[Coefficients, list[float]] = {}

    def ranked(tried: Coefficients) -> list[float]:
        if tried not in ranks:
            ranks[tried] = rank(tried)
        return ranks[tried]

    best = tuple(repeat(1 / num_coefficients, num_coefficients))
    for place in list(range(num_coefficients)) * (ROUNDS if num_coefficients > 1 else 1):
        best = max(((*best[:place], value, *best[place + 1 :]) for value in GRID), key=ranked)
    return best


def require_alike(weights: Weights, like: Mapping[str, Tensor], source: str, where: str) -> None:
    """Raise InputError unless there is a weight of the same shape for each of `like`."""
    for name, value in like.items():
        if name not in weights or weights[name].shape != value.shape:
            shape = f"in the shape {list(weights[name].shape)}" if name in weights else "not at all"
            raise InputError(
                where,
                f"the model here has {name} in the shape {list(value.shape)}, {source!r} {shape}",
                "merge the adapter first, or take it out of `of`",
            )


def _mix(start: Tensor, others: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    whole = start.to(torch.float64)
    moved = sum((c * (other.to(torch.float64) - whole) for c, other in zip(coefficients, others, strict=True)), whole)
    return moved.to(start.dtype)


def _greedy_soup(sources: Mapping[str, Weights], rank: Rank) -> Mixture:
    """Take the best source, and average in each next one unless the score falls (Wortsman et al. 2022)."""
    alone = {name: rank(weights) for name, weights in sources.items()}
    soup: list[str] = []
    best: list[float] = []
    for name in sorted(sources, key=lambda name: alone[name], reverse=True):
        reached = rank(mean([sources[each] for each in [*soup, name]])) if soup else alone[name]
        if not soup or reached[0] >= best[0]:
            soup, best = [*soup, name], reached
    return Mixture(mean([sources[name] for name in soup]), {name: 1 / len(soup) for name in soup})
