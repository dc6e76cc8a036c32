"""AdaLoRA's ranks (Zhang et al. 2023, 2303.10512): what is cut of changes B diag(E) A, and what keeps them orthogonal.

A direction of a layer is a row of A, an entry of E and a column of B. The importance of a weight w with gradient g is
I * U, where I is a running average of |w g|, and U one of how far |w g| lies from it; that of a direction is that of
its entry of E plus the means over its row and its column. A cut direction has 0 in E.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from alloytune.models.adapters import Factors
from alloytune.train.optimizers import Optimizer

BETA = 0.85  # of both averages, as in the paper
_IMPORTANCE, _UNCERTAINTY = "importance", "uncertainty"  # entries of the optimizer's memory


class Ranks:
    """Cuts directions of an adapter's layers, after an update, until an average rank is left.

    `budget` gives that rank by the share of the stage that is done; where it gives None, what is cut stays so and no
    more is cut. Averages are kept in the optimizer's memory, where checkpoints find them. `orthogonal` weighs the mean
    over all A and B of the Frobenius norms ||A A' - I|| and ||B' B - I||, whose gradient is added to the loss's after
    clipping.
    """

    def __init__(
        self, layers: Sequence[Factors], budget: Callable[[float], float | None], orthogonal: float = 0.0
    ) -> None:
        self._layers = layers
        self._budget = budget
        self._orthogonal = orthogonal
        self._share = 0.0

    def at(self, share: float) -> None:
        """Hear what share of the stage lies before the next update."""
        self._share = share

    @contextmanager
    def around(self, optimizer: Optimizer) -> Iterator[None]:
        """Go around one step; one in which the adapter rests is passed over."""
        moving = [layer for layer in self._layers if all(weight.grad is not None for weight in layer)]
        if not moving:
            yield
            return
        weights = list(chain.from_iterable(moving))
        sensitivities = [(weight.detach() * weight.grad).abs() for weight in weights if weight.grad is not None]
        is_new = not any(layer.e.any() for layer in self._layers)  # nothing is cut yet where nothing was ever learned
        cut = [(layer.e.detach() == 0) & (not is_new) for layer in moving]
        if self._orthogonal:
            _add_gradients(moving, self._orthogonal)
        yield
        memories = _memories(optimizer)
        for weight, sensitivity in zip(weights, sensitivities, strict=True):
            _remember(memories[weight], sensitivity)
        budget = self._budget(self._share)
        if budget is not None:
            cut = _weakest(moving, memories, budget)
        with torch.no_grad():
            for layer, its_cut in zip(moving, cut, strict=True):
                layer.e.masked_fill_(its_cut, 0.0)


def _add_gradients(layers: Sequence[Factors], weight: float) -> None:
    """Add the gradient of the penalty to the factors'."""
    factors = [factor for layer in layers for factor in (layer.a, layer.b)]
    with torch.enable_grad():
        grams = [matrix for layer in layers for matrix in (layer.a @ layer.a.T, layer.b.T @ layer.b)]
        norms = [torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device)) for gram in grams]
        penalty = weight * torch.stack(norms).mean()
    for factor, gradient in zip(factors, torch.autograd.grad(penalty, factors), strict=True):
        assert factor.grad is not None
        factor.grad += gradient


def _memories(optimizer: Optimizer) -> dict[nn.Parameter, dict[str, Any]]:
    return {weight: memories[weight] for weight, _, memories in optimizer.homes() if weight.grad is not None}


def _remember(memory: dict[str, Any], sensitivity: Tensor) -> None:
    """Take an update's |w g| into the averages."""
    if _IMPORTANCE not in memory:
        memory |= {_IMPORTANCE: torch.zeros_like(sensitivity), _UNCERTAINTY: torch.zeros_like(sensitivity)}
    importance, uncertainty = memory[_IMPORTANCE], memory[_UNCERTAINTY]
    importance.lerp_(sensitivity, 1.0 - BETA)
    uncertainty.lerp_((sensitivity - importance).abs(), 1.0 - BETA)


def _weakest(layers: Sequence[Factors], memories: dict[nn.Parameter, dict[str, Any]], budget: float) -> list[Tensor]:
    """Tell of every layer which of its directions, [rank, 1], are not among the strongest of all."""

    def score(weight: nn.Parameter) -> Tensor:
        product: Tensor = memories[weight][_IMPORTANCE] * memories[weight][_UNCERTAINTY]
        return product

    scores = [score(la.a).mean(1) + score(la.e).squeeze(1) + score(la.b).mean(0) for la in layers]
    order = torch.cat(scores).argsort(descending=True, stable=True)
    is_cut = torch.ones(len(order), dtype=torch.bool, device=order.device)
    is_cut[order[: round(budget * len(layers))]] = False
    return [part.unsqueeze(1) for part in is_cut.split([len(each) for each in scores])]
